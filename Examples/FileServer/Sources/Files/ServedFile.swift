// SPDX-License-Identifier: Apache-2.0

import CServedFiles
import DispatchAIO
import Glibc
import SystemPackage

/// A regular file that is open for reading. Its descriptor is closed with the last reference.
///
/// - Safety: `@unchecked Sendable` because it is made by one thread, which hands it over, and is
///   then confined to its loop's queue.
final class ServedFile: @unchecked Sendable {
  let descriptor: Int32
  let status: cfiles_status
  let type: MediaType
  /// What of the codings it is in, if any.
  let coding: ContentCoding?
  /// Whether a compressed file beside it might have been sent instead.
  let varies: Bool
  private let isDirect: Bool
  private let isAutomatic: Bool
  /// Made when the library has to read: what is in the page cache needs none.
  private var aioFile: AIOFile?

  /// - Parameter descriptor: The file's from now on.
  init(
    _ descriptor: Int32, _ status: cfiles_status, type: MediaType, coding: ContentCoding?,
    varies: Bool, isDirect: Bool, isAutomatic: Bool
  ) {
    (self.descriptor, self.status, self.type) = (descriptor, status, type)
    (self.coding, self.varies) = (coding, varies)
    (self.isDirect, self.isAutomatic) = (isDirect, isAutomatic)
  }

  deinit {
    // A file that was only read has nothing to write when it is closed.
    if aioFile == nil { Glibc.close(descriptor) }
  }

  var size: Int64 { status.size }

  /// For the library's reads.
  func file() throws(AIOError) -> AIOFile {
    if let aioFile { return aioFile }
    let file = try AIOFile(
      adopting: FileDescriptor(rawValue: descriptor), isAutomatic: isAutomatic)
    aioFile = file
    return file
  }

  /// Whether the file is still as it was opened: not written to, not removed, not renamed or
  /// replaced, all of which change the time of its last change.
  var isUnchanged: Bool {
    var now = cfiles_status()
    guard cfiles_status(descriptor, &now) == 0 else { return false }
    return now.changed_seconds == status.changed_seconds
      && now.changed_nanoseconds == status.changed_nanoseconds && now.links == status.links
      && now.size == status.size
  }

  /// Whether bytes may be taken from the page cache without asking the library.
  var isInPageCache: Bool { !isDirect }

  /// Its entity tag: the time of its last modification, and its size.
  func appendTag(to output: OutputBuffer) {
    output.append(byte: UInt8(ascii: "\""))
    output.append(UInt64(bitPattern: status.modified_seconds), radix: 16)
    output.append(byte: UInt8(ascii: "."))
    output.append(UInt64(status.modified_nanoseconds), radix: 16)
    output.append(byte: UInt8(ascii: "-"))
    output.append(UInt64(size), radix: 16)
    if let coding {
      output.append(byte: UInt8(ascii: "-"))
      output.append(coding.name)
    }
    output.append(byte: UInt8(ascii: "\""))
  }

  var validator: Validator {
    let output = OutputBuffer(capacity: 80)
    appendTag(to: output)
    return Validator(tag: Array(output.bytes), modified: status.modified_seconds)
  }
}

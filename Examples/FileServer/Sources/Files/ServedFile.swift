// SPDX-License-Identifier: Apache-2.0

import CServedFiles
import DispatchAIO
import Glibc
import HTTPRules
import SystemPackage

/// A regular file that is open for reading. It is closed with the last reference.
final class ServedFile: Sendable {
  let file: AIOFile
  let type: MediaType
  /// What of the codings it is in, if any.
  let coding: ContentCoding?
  /// Whether a compressed file beside it might have been sent instead.
  let varies: Bool

  init(_ file: AIOFile, type: MediaType, coding: ContentCoding?, varies: Bool) {
    (self.file, self.type, self.coding, self.varies) = (file, type, coding, varies)
  }

  var descriptor: Int32 { file.fileDescriptor.rawValue }
  var status: AIOFile.Status { file.status }
  var size: Int64 { status.size }

  /// Whether the file is still as it was opened: not written to, not removed, not renamed or
  /// replaced, all of which change the time of its last change.
  var isUnchanged: Bool {
    var now = cserved_status()
    guard cserved_status(descriptor, &now) == 0 else { return false }
    return now.changed_seconds == status.changeTime.seconds
      && now.changed_nanoseconds == status.changeTime.nanoseconds
      && now.links == status.linkCount && now.size == status.size
  }

  /// Whether it was last written to before another was.
  func isOlder(than other: ServedFile) -> Bool {
    let (own, others) = (status.modificationTime, other.status.modificationTime)
    return (own.seconds, own.nanoseconds) < (others.seconds, others.nanoseconds)
  }

  /// Whether bytes may be taken from the page cache without asking the library.
  var isInPageCache: Bool { file.caching != .direct }

  /// Its entity tag: the time of its last modification, and its size.
  func appendTag(to output: OutputBuffer) {
    output.append(byte: UInt8(ascii: "\""))
    output.append(UInt64(bitPattern: status.modificationTime.seconds), radix: 16)
    output.append(byte: UInt8(ascii: "."))
    output.append(UInt64(status.modificationTime.nanoseconds), radix: 16)
    output.append(byte: UInt8(ascii: "-"))
    output.append(UInt64(size), radix: 16)
    if let coding {
      output.append(byte: UInt8(ascii: "-"))
      output.append(coding.name)
    }
    output.append(byte: UInt8(ascii: "\""))
  }

  /// What Last-Modified says of it at a time. Both are in seconds since 1970.
  func lastModified(now: Int64) -> Int64 {
    Validator.lastModified(
      status.modificationTime.seconds, changed: status.changeTime.seconds, now: now)
  }

  func validator(now: Int64) -> Validator {
    let output = OutputBuffer(capacity: 80)
    appendTag(to: output)
    return Validator(tag: Array(output.bytes), modified: lastModified(now: now), now: now)
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// A file that is being received: written under a temporary name, made durable, and renamed, so that
// who reads the path finds the whole old file or the whole new one, also after a power failure.

import CServedFiles
import DispatchAIO
import Glibc
import Synchronization
import SystemPackage

/// What is needed to begin an upload.
struct UploadRequest: Sendable {
  var path: TargetPath
  /// Only if there is no such file (`If-None-Match: *`).
  var isExclusive = false
  /// Decides by the version that is there, if any.
  var condition: (@Sendable (Validator?) -> Bool)?
}

/// - Safety: `@unchecked Sendable` because it is used by one thread after the other: the loop's
///   queue, and the queue of blocking calls in between.
final class Upload: @unchecked Sendable {
  private static let numbers = Atomic<UInt64>(0)

  /// The directory, as a place.
  private let directory: Int32
  private let name: [UInt8]
  private let temporaryName: [UInt8]
  private let isExclusive: Bool
  let file: AIOFile
  /// Whether there was a file of that name when it began.
  private let replaces: Bool
  private var isFinished = false

  /// Refused with a status.
  struct Refused: Error { var status: Int }

  /// Begins an upload. It may sleep in the disk.
  init(_ request: UploadRequest, in root: Root) throws(Refused) {
    let path = request.path
    guard !path.isDirectory else { throw Refused(status: 409) }
    let slash = path.bytes.lastIndex(of: UInt8(ascii: "/"))
    name = Array(path.bytes[(slash.map { $0 + 1 } ?? 0)...])
    let parent = slash.map { Array(path.bytes[..<$0]) + [0] } ?? Array(".\0".utf8)
    let directory = Self.withPath(parent) { cfiles_open_place(root.descriptor, $0) }
    // Directories are not made: what is in the way of one is a conflict.
    guard directory >= 0 else { throw Refused(status: Self.status(-directory, notFound: 409)) }
    self.directory = directory
    isExclusive = request.isExclusive
    let number = Self.numbers.add(1, ordering: .relaxed).newValue
    temporaryName = Array(
      ".aio-httpd-\(getpid())-\(number)-\(UInt32.random(in: 0 ... .max))\0".utf8)
    do {
      replaces = try Self.check(request, root, name: name, in: directory)
      file = try Self.create(temporaryName, in: directory)
    } catch {
      Glibc.close(directory)
      throw error
    }
  }

  deinit {
    // The connection has ended on the way.
    if !isFinished { _ = Self.withPath(temporaryName) { cfiles_unlink(directory, $0) } }
    Glibc.close(directory)
  }

  private static func withPath(_ path: [UInt8], _ body: (UnsafePointer<CChar>) -> Int32) -> Int32 {
    // It ends with a zero byte, so that it has an address.
    path.withUnsafeBytes { body($0.bindMemory(to: CChar.self).baseAddress!) }
  }

  /// - Returns: whether there is such a file.
  private static func check(
    _ request: UploadRequest, _ root: Root, name: [UInt8], in directory: Int32
  ) throws(Refused) -> Bool {
    var status = cfiles_status()
    let answer = withPath(name) { cfiles_status_at(directory, $0, &status) }
    guard answer == 0 || answer == -ENOENT else { throw Refused(status: Self.status(-answer)) }
    // Neither a directory, nor what a link leads to, nor a device is replaced by a file.
    guard answer < 0 || mode_t(status.type) == S_IFREG else { throw Refused(status: 409) }
    var validator: Validator?
    if answer == 0 {
      if request.isExclusive { throw Refused(status: 412) }
      if case .file(let file) = root.resolve(request.path, codings: [], mayWait: true) {
        validator = file.validator
      }
    }
    guard request.condition?(validator) ?? true else { throw Refused(status: 412) }
    return answer == 0
  }

  private static func create(_ name: [UInt8], in directory: Int32) throws(Refused) -> AIOFile {
    let descriptor = withPath(name) { cfiles_create(directory, $0) }
    guard descriptor >= 0 else { throw Refused(status: status(-descriptor)) }
    do {
      return try AIOFile(adopting: FileDescriptor(rawValue: descriptor))
    } catch {
      Glibc.close(descriptor)
      _ = withPath(name) { cfiles_unlink(directory, $0) }
      throw Refused(status: 500)
    }
  }

  /// Gives the file its name, and makes that durable. The file's bytes must be. It may sleep in the
  /// disk.
  ///
  /// - Returns: whether there was no file of that name before.
  func publish() throws(Refused) -> Bool {
    let answer = Self.withPath(temporaryName) { from in
      Self.withPath(name) { cfiles_rename(directory, from, $0, isExclusive ? 1 : 0) }
    }
    guard answer == 0 else {
      throw Refused(status: answer == -EEXIST ? 412 : Self.status(-answer))
    }
    isFinished = true
    guard cfiles_sync_directory(directory) == 0 else { throw Refused(status: 500) }
    return !replaces
  }

  static func status(_ errno: Int32, notFound: Int = 404) -> Int {
    switch errno {
    case ENOENT, ENOTDIR: notFound
    case EXDEV, ELOOP, ENAMETOOLONG: 404
    case EACCES, EPERM, EROFS: 403
    case ENOSPC, EDQUOT: 507
    case EISDIR, ENOTEMPTY: 409
    case EMFILE, ENFILE, ENOMEM: 503
    default: 500
    }
  }
}

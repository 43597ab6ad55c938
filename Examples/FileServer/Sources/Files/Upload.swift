// SPDX-License-Identifier: Apache-2.0
//
// A file that is being received: it has no name, or a temporary one, until it is durable, so that
// who reads the path finds the whole old file or the whole new one, also after a power failure.

import Dispatch
import DispatchAIO
import Glibc
import SystemPackage

/// What is needed to begin an upload.
struct UploadRequest: Sendable {
  var path: TargetPath
  /// Only if there is no such file (`If-None-Match: *`).
  var isExclusive = false
  /// Decides by the version that is there, if any.
  var condition: (@Sendable (Validator?) -> Bool)?
}

final class Upload: Sendable {
  private let replacement: AIOReplacement
  /// Whether there was a file of that name when it began.
  let replaces: Bool

  var file: AIOFile { replacement.file }

  /// Refused with a status.
  struct Refused: Error { var status: Int }

  /// Begins an upload. It may sleep in the disk.
  init(_ request: UploadRequest, in root: Root) throws(Refused) {
    guard !request.path.isDirectory else { throw Refused(status: 409) }
    // The path ends with a zero byte, so that it has an address.
    let path = (request.path.bytes + [0]).withUnsafeBytes {
      FilePath(platformString: $0.bindMemory(to: CChar.self).baseAddress!)
    }
    replaces = try Self.check(request, root, path)
    do {
      replacement = try AIOReplacement.begin(
        path, beneath: root.directory, existing: request.isExclusive ? .keep : .replace,
        permissions: [.ownerReadWrite, .groupReadWrite, .otherReadWrite], caching: .buffered)
    } catch {
      // Directories are not made: what is in the way of one is a conflict.
      throw Refused(status: Self.status(error, notFound: 409))
    }
  }

  /// - Returns: whether there is such a file.
  private static func check(
    _ request: UploadRequest, _ root: Root, _ path: FilePath
  ) throws(Refused) -> Bool {
    let there: AIOFile.Status?
    do {
      there = try root.directory.status(of: path)
    } catch {
      // Its directory is looked at when the upload begins.
      guard error.code == .notFound else { throw Refused(status: status(error, notFound: 409)) }
      there = nil
    }
    // Neither a directory, nor what a link leads to, nor a device is replaced by a file.
    guard there?.kind ?? .regular == .regular else { throw Refused(status: 409) }
    var validator: Validator?
    if there != nil {
      if request.isExclusive { throw Refused(status: 412) }
      if case .file(let file) = root.resolve(request.path, codings: [], mayWait: true) {
        validator = file.validator
      }
    }
    guard request.condition?(validator) ?? true else { throw Refused(status: 412) }
    return there != nil
  }

  /// Makes the file durable, gives it its name, and makes that durable. Calls back on a queue.
  func publish(
    on queue: DispatchQueue, _ completion: @escaping @Sendable (Result<Void, AIOError>) -> Void
  ) {
    replacement.commit(queue: queue, completion: completion)
  }

  /// The answer to an upload that failed.
  static func status(_ error: AIOError, notFound: Int = 404) -> Int {
    if error.code == .exists { return 412 }
    return error.errno.map { status($0.rawValue, notFound: notFound) } ?? 500
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

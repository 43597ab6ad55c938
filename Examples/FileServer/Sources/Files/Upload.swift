// SPDX-License-Identifier: Apache-2.0
//
// A file that is being received: it has no name, or a temporary one, until it is durable, so that
// who reads the path finds the whole old file or the whole new one, also after a power failure.

import DispatchAIO
import Glibc
import HTTPRules
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
  private let request: UploadRequest
  private let root: Root
  private let path: FilePath
  private let replacement: AIOReplacement

  var file: AIOFile { replacement.file }

  /// Refused with a status.
  struct Refused: Error {
    var status: Int
    /// What the disk said, where the fault is not the client's.
    var error: AIOError?
  }

  /// Begins an upload. It may sleep in the disk.
  init(_ request: UploadRequest, in root: Root) throws(Refused) {
    guard !request.path.isDirectory else { throw Refused(status: 409) }
    // The path ends with a zero byte, so that it has an address.
    path = request.path.bytes.withUnsafeBytes {
      FilePath(platformString: $0.bindMemory(to: CChar.self).baseAddress!)
    }
    (self.request, self.root) = (request, root)
    let replaces = try Self.check(request, root, path)
    do {
      replacement = try AIOReplacement.begin(
        path, beneath: root.directory, existing: request.isExclusive ? .keep : .replace,
        // A file that is replaced hands its permissions on.
        permissions: replaces ? nil : [.ownerReadWrite, .groupReadWrite, .otherReadWrite],
        caching: .buffered)
    } catch {
      // Directories are not made: what is in the way of one is a conflict.
      throw Refused(status: HTTPStatus.of(error, notFound: 409))
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
      guard error.code == .notFound else {
        throw Refused(status: HTTPStatus.of(error, notFound: 409))
      }
      there = nil
    }
    // Neither a directory, nor what a link leads to, nor a device is replaced by a file.
    guard there?.kind ?? .regular == .regular else { throw Refused(status: 409) }
    if there != nil, request.isExclusive { throw Refused(status: 412) }
    guard let condition = request.condition else { return there != nil }
    var validator: Validator?
    if there != nil,
      case .file(let file) = root.resolve(request.path, codings: [], mayWait: true)
    {
      validator = file.validator(now: Int64(time(nil)))
    }
    guard condition(validator) else { throw Refused(status: 412) }
    return there != nil
  }

  /// Makes the file durable, gives it its name if what the client asked for still holds, and makes
  /// that durable. It may sleep in the disk.
  ///
  /// - Returns: whether it replaced a file.
  func publish() throws(Refused) -> Bool {
    // The path has one, by which the upload began.
    guard let name = path.lastComponent else { throw Refused(status: 409) }
    return try root.replacing(name).withLock { _ throws(Refused) in
      let replaces = try Self.check(request, root, path)
      do throws(AIOError) {
        try replacement.commit()
      } catch {
        throw Refused(
          status: HTTPStatus.of(error), error: error.code == .exists ? nil : error)
      }
      return replaces
    }
  }
}

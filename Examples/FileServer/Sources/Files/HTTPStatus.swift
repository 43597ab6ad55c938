// SPDX-License-Identifier: Apache-2.0

import DispatchAIO
import Glibc

/// What a request is answered with that the disk, or the directory, refused.
enum HTTPStatus {
  /// - Parameter notFound: Where the path leads nowhere.
  static func of(_ error: AIOError, notFound: Int = 404) -> Int {
    if error.code == .exists { return 412 }
    return error.errno.map { of($0.rawValue, notFound: notFound) } ?? 500
  }

  static func of(_ errno: Int32, notFound: Int = 404) -> Int {
    switch errno {
    case ENOENT, ENOTDIR: notFound
    case EXDEV, ELOOP: 404
    case ENAMETOOLONG: 414
    case EACCES, EPERM, EROFS: 403
    case ENOSPC, EDQUOT: 507
    case EISDIR, ENOTEMPTY: 409
    case EMFILE, ENFILE, ENOMEM: 503
    default: 500
    }
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// What the engine answers in errnos, in the words of the public face.

internal import Glibc

extension Request<Delivery> {
  /// For the error, if it comes to one.
  var subject: AIOError.Subject { AIOError.Subject(operation, file, offset, length) }
}

extension AIOError {
  /// Why an accepted request did not succeed.
  static func failed(_ request: borrowing Request<Delivery>, errno: Int32) -> AIOError {
    if errno == ECANCELED {
      return .cancelled(request.subject, transferred: request.transferred)
    }
    return AIOError(errno: errno, request.subject, transferred: request.transferred)
  }
}

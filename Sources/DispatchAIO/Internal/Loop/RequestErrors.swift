// SPDX-License-Identifier: Apache-2.0
//
// The errors of the public face for the errnos that the engine answers.

internal import PlatformLibc

extension Request<Delivery> {
  /// The subject of the request's error, if it fails.
  var subject: AIOError.Subject { AIOError.Subject(operation, file, offset, length, options) }

  /// Ends the request, which is in no table, in this call.
  consuming func end(_ error: AIOError) {
    file.release()
    attachment.complete(.failure(error))
  }
}

extension AIOError {
  /// The error of an accepted request that did not succeed.
  static func failed(_ request: borrowing Request<Delivery>, errno: Int32) -> AIOError {
    if errno == ECANCELED {
      return .cancelled(request.subject, transferred: request.transferred)
    }
    return AIOError(errno: errno, request.subject, transferred: request.transferred)
  }
}

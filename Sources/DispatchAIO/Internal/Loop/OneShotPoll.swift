// SPDX-License-Identifier: Apache-2.0

internal import SystemPackage

/// A poll that ends with its first event.
final class OneShotPoll: Sendable {
  let fd: Int32
  let events: AIOPollEvents
  let completion: @Sendable (Result<AIOPollEvents, AIOError>) -> Void

  init(
    fd: Int32, events: AIOPollEvents,
    completion: @escaping @Sendable (Result<AIOPollEvents, AIOError>) -> Void
  ) {
    self.fd = fd
    self.events = events
    self.completion = completion
  }

  var subject: AIOError.Subject { .init(operation: .poll, descriptor: fd) }
}

extension AIOError {
  static func cancelledPoll(_ subject: Subject) -> AIOError {
    AIOError(.cancelled, errno: .canceled, subject, .text("cancelled before it was ready"))
  }

  /// Why a descriptor cannot be polled.
  static func polling(_ fd: Int32?, _ errno: Errno) -> AIOError {
    let subject = Subject(operation: .poll, descriptor: fd)
    switch errno {
    case .canceled: return .contextClosed(subject)
    case .notPermitted:
      return AIOError(
        .unsupportedFile, errno: errno, subject,
        .text(
          """
          it is a regular file or a directory, which are always ready; read it with the context's \
          verbs
          """))
    case .fileExists:
      return AIOError(
        .exists, errno: errno, subject,
        .text("the descriptor has such a source already; cancel that one first"))
    case .noSpace:
      return AIOError(
        .descriptorLimit, errno: errno, subject,
        .text(
          """
          the user's epoll watches are used up (fs.epoll.max_user_watches); raise it, or close \
          descriptors that are not needed
          """))
    default:
      return AIOError(errno: errno.rawValue, subject)
    }
  }
}

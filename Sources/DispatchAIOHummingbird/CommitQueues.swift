// SPDX-License-Identifier: Apache-2.0
//
// Where uploads get their names: a request's conditions are looked at, and the file gets its name,
// with no other upload of that name in between.

#if Hummingbird
internal import Dispatch
internal import SystemPackage

/// The commits of uploads: those of one name one after the other.
struct CommitQueues: Sendable {
  /// A commit waits for the disk, and the others of its queue for it: so there are some.
  private let queues = (0..<16).map { DispatchQueue(label: "DispatchAIO.hummingbird.commit.\($0)") }

  /// Runs a block that waits.
  ///
  /// - Parameter name: The last of the path: the same file may have another path through links.
  func run(
    _ name: FilePath.Component, _ body: @escaping @Sendable () throws -> Bool
  ) async throws -> Bool {
    let queue = queues[Int(UInt(bitPattern: name.hashValue) % UInt(queues.count))]
    return try await withCheckedThrowingContinuation { continuation in
      queue.async { continuation.resume(with: Result { try body() }) }
    }
  }
}
#endif

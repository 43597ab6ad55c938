// SPDX-License-Identifier: Apache-2.0
//
// The requests to the disk, in turns: the context has no more than the kernel may have, and the
// connections take turns for the rest. So nobody waits for more than those, and one request of each
// of the others.

import DispatchAIO

/// A request to the disk.
enum DiskRequest {
  /// A part of a command's data, by its number.
  case piece(Command, Int)
  /// A block at the edge of an unaligned write: its place in the command's data, and a buffer.
  case edge(Command, Int, PooledBuffer)
}

extension ServerLoop {
  /// Submits a request in its connection's turn.
  @inline(__always)
  func submit(_ request: DiskRequest, of connection: Connection) {
    if diskTurns.isEmpty && inFlight < mostInFlight && submit(request) { return }
    if connection.waitingForDisk.isEmpty { diskTurns.append(connection) }
    connection.waitingForDisk.append(request)
  }

  /// - Returns: `false` if the context has no room.
  @inline(__always)
  private func submit(_ request: DiskRequest) -> Bool {
    do throws(AIOError) {
      switch request {
      case .piece(let command, let piece): try command.submit(piece)
      case .edge(let command, let place, let buffer): try readEdge(command, place, buffer)
      }
    } catch {
      if error.isRetryable {
        // Without a request in flight nothing else would lead to the next attempt.
        if inFlight == 0 { context.async { [self] in workSoon() } }
        return false
      }
      // Not within the call, because the caller relies on a later completion.
      context.async { [self] in end(request, error) }
    }
    inFlight += 1
    return true
  }

  /// Submits what waits, as far as there is room.
  func submitWaiting() {
    while inFlight < mostInFlight, let connection = diskTurns.popFirst() {
      guard let request = connection.waitingForDisk.first else { continue }
      guard submit(request) else { return diskTurns.prepend(connection) }
      connection.waitingForDisk.removeFirst()
      if !connection.waitingForDisk.isEmpty { diskTurns.append(connection) }
    }
  }

  /// A request has completed.
  @inline(__always)
  func diskRequestEnded() {
    inFlight -= 1
    roomWasMade()
  }

  /// Ends a request that has not reached the disk; it was counted.
  private func end(_ request: DiskRequest, _ error: AIOError) {
    switch request {
    case .piece(let command, _): command.completed(.failure(error))
    case .edge(let command, let place, let buffer):
      edgeWasRead(command, place, buffer, .failure(error))
    }
  }

  /// Drops the requests of a connection that has ended.
  func dropWaiting(of connection: Connection) {
    guard !connection.waitingForDisk.isEmpty else { return }
    let requests = connection.waitingForDisk
    connection.waitingForDisk = []
    diskTurns.removeAll { $0 === connection }
    for request in requests {
      // Counted, as if it had been submitted.
      inFlight += 1
      switch request {
      case .piece(let command, _): command.completed(.success(0))
      case .edge(let command, let place, let buffer):
        edgeWasRead(command, place, buffer, .success(0))
      }
    }
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// One client: its bytes to the journal, and back once they are durable. Confined to the loop's
// queue; called by the server, its sources and the journal.

import DispatchAIO
import Glibc
import ServerSupport
import SystemPackage

/// A client's connection. It takes at most `window` bytes of memory, and two chunks of `ByteQueue`:
/// bytes received and not yet echoed are either in a shared batch buffer (until durable) or in
/// `backlog` (until sent), and nothing more than the window is received.
///
/// - Safety: `@unchecked Sendable` because it is confined to the loop's queue, where its sources'
///   handlers run.
final class Connection: JournalClient, @unchecked Sendable {
  /// The most bytes received and not yet echoed.
  static let window = 256 << 10
  /// The most bytes received at once, so that the other connections get their turn.
  private static let share = 64 << 10

  let number: UInt64
  let peer: String
  /// The time when it was accepted, in nanoseconds since 1970.
  private let opened: Int64
  private let socket: Int32
  private unowned let server: Server
  /// Set by `init`, because the handlers need the connection; never `nil` afterwards.
  private var sources: SocketSources!

  /// Whether the journal has the record that it was opened.
  private var isRecorded = false
  /// Whether the journal has lost bytes of it.
  private var isLost = false
  /// Whether there may be something to receive. If not, the sources tell when there is.
  private var isReadable = false {
    didSet { if !isReadable { sources.awaitsInput = true } }
  }
  /// Whether the server has it in `readyConnections`.
  var isMarkedReady = false
  private var inputEnded = false
  private var isClosed = false
  /// The position in its stream of the next byte to receive.
  private(set) var received: UInt64 = 0
  /// The number of bytes appended to the journal and not durable yet.
  private var inJournal = 0
  /// The bytes that are durable and that the socket has not taken yet.
  private var backlog = ByteQueue()
  private(set) var lastActivity: ContinuousClock.Instant

  init(
    number: UInt64, peer: String, socket: Int32, server: Server, context: AIOContext
  ) throws(AIOError) {
    (self.number, self.peer, self.socket, self.server) = (number, peer, socket, server)
    lastActivity = server.now
    opened = JournalFormat.now()
    sources = try SocketSources(
      socket, in: context,
      becameReadable: { [unowned self] in becameReadable() },
      becameWritable: { [unowned self] in sendBacklog() })
  }

  // MARK: Receiving

  private func becameReadable() {
    // Known already, and it may not be received yet.
    if isReadable { sources.awaitsInput = false }
    isReadable = true
    markReady()
  }

  /// Whether there may be something to receive, and it may be received.
  private var canReceive: Bool {
    isReadable && !inputEnded && !isClosed && !server.isDraining && outstanding < Self.window
  }

  private var outstanding: Int { inJournal + backlog.count }

  private func markReady() {
    if canReceive { server.markReady(self) }
  }

  enum Reception {
    /// There may be more to receive.
    case more
    /// There is nothing to receive until the socket is readable.
    case nothing
    /// The journal has no room now.
    case noRoom
  }

  /// Receives once, straight into the journal's open batch.
  func receive() -> Reception {
    guard canReceive else { return .nothing }
    // In one batch with its first bytes.
    guard recordOpening() else { return .noRoom }
    var failure: Int32 = 0
    var asked = 0
    let count = server.journal.append(
      .data, of: number, at: received, most: min(Self.share, Self.window - outstanding), for: self
    ) { bytes in
      // To make room, the batch before may have been given up, with bytes of this connection.
      guard !isLost else { return -1 }
      asked = bytes.count
      while true {
        let count = recv(socket, bytes.baseAddress, bytes.count, 0)
        // At the end of the input there is nothing to record.
        if count > 0 { return count }
        if count < 0 && errno == EINTR { continue }
        failure = count == 0 ? 0 : errno
        return -1
      }
    }
    switch count {
    case nil:
      return .noRoom
    case .some(let count) where count > 0:
      received += UInt64(count)
      inJournal += count
      lastActivity = server.now
      server.bytesReceived += count
      if count < asked { isReadable = false }
      return canReceive ? .more : .nothing
    default:
      if failure == 0 {
        inputEnded = true
        closeIfDone()
      } else if failure == EAGAIN {
        isReadable = false
      } else {
        close("\(Errno(rawValue: failure))")
      }
      return .nothing
    }
  }

  /// Records that the connection was opened, if that has not been done.
  ///
  /// - Returns: `false` if the journal has no room now.
  func recordOpening() -> Bool {
    if isRecorded { return true }
    let peer = peer.utf8.prefix(200)
    let length = 8 + peer.count
    let count = server.journal.append(.opened, of: number, at: 0, most: length, for: self) {
      bytes in
      bytes.put(opened, at: 0)
      UnsafeMutableRawBufferPointer(rebasing: bytes[8...]).copyBytes(from: peer)
      return length
    }
    isRecorded = count != nil
    return isRecorded
  }

  /// Records that the connection has closed.
  ///
  /// - Returns: `false` if the journal has no room now.
  func recordClosing() -> Bool {
    // The position would be after bytes that are not there.
    if isLost { return true }
    guard recordOpening() else { return false }
    return server.journal.append(.closed, of: number, at: received, most: 1, for: self) { _ in
      // As in `receive`.
      isLost ? -1 : 0
    } != nil
  }

  // MARK: Echoing

  func becameDurable(_ bytes: UnsafeRawBufferPointer) {
    inJournal -= bytes.count
    guard !isClosed else { return }
    var rest = bytes
    // Bytes that follow a backlog have to wait at its end.
    if backlog.isEmpty { rest = .init(rebasing: bytes[send(bytes)...]) }
    if !rest.isEmpty && !isClosed {
      backlog.append(rest)
      sources.awaitsRoom = true
    }
    closeIfDone()
    markReady()
  }

  private func sendBacklog() {
    var takesMore = true
    while takesMore && !backlog.isEmpty {
      let (sent, all) = backlog.withFirstBytes { (send($0), $0.count) }
      if isClosed { return }
      backlog.removeFirst(sent)
      takesMore = sent == all
    }
    sources.awaitsRoom = !backlog.isEmpty
    closeIfDone()
    markReady()
  }

  /// - Returns: the number of bytes that the socket took. The rest follows when it is writable.
  private func send(_ bytes: UnsafeRawBufferPointer) -> Int {
    var sent = 0
    while sent < bytes.count {
      let count = Glibc.send(
        socket, bytes.baseAddress! + sent, bytes.count - sent, Int32(MSG_NOSIGNAL))
      if count >= 0 {
        sent += count
        lastActivity = server.now
        server.bytesEchoed += count
      } else if errno == EAGAIN {
        break
      } else if errno != EINTR {
        close("\(Errno(rawValue: errno))")
        break
      }
    }
    return sent
  }

  // MARK: The end

  /// Closes if the client has ended its input, and all is echoed.
  private func closeIfDone() {
    if inputEnded && outstanding == 0 { close(nil) }
  }

  /// Closes if all that was received is echoed, and has arrived. Called repeatedly while the server
  /// shuts down; nothing more is received then.
  func drain() {
    if outstanding == 0 && endSending(on: socket) { close(nil) }
  }

  func journalFailed(_ error: any Error) {
    isLost = true
    close("the journal failed: \(error)")
  }

  /// - Parameter reason: the fault; `nil` for the normal end.
  func close(_ reason: String?) {
    guard !isClosed else { return }
    isClosed = true
    server.connectionCloses(self, reason)
    sources.close()
    backlog = ByteQueue()
  }
}

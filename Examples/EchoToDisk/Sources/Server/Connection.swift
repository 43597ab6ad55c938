// SPDX-License-Identifier: Apache-2.0

import Glibc
import ServerSupport
import SystemPackage

/// One client: its bytes on their way to the journal, and back.
///
/// Memory per connection is at most `window`: bytes received and not yet taken back by the client
/// are either in a shared batch buffer (until durable) or in `backlog` (until sent), and nothing is
/// received beyond the window.
final class Connection: SocketHandler, JournalClient {
  /// The most bytes received whose echo the client has not taken.
  static let window = 256 << 10
  /// The most bytes received in one go, so that others get their turn.
  private static let share = 64 << 10

  let number: UInt64
  let peer: String
  /// In nanoseconds since 1970.
  private let opened: Int64
  private let socket: Int32
  private unowned let server: Server
  private var token: UInt64 = 0

  /// Whether the journal has the record that it was opened.
  private var isRecorded = false
  /// Whether the journal has lost something of it.
  private var isLost = false
  private var isReadable = false
  /// Whether the server has it in its list of connections to receive from.
  var isInLine = false
  private var inputEnded = false
  private var isClosed = false
  /// Where in its stream the next byte received will be.
  private(set) var received: UInt64 = 0
  /// Appended to the journal, and not durable yet.
  private var inJournal = 0
  /// Durable, and not taken by the socket yet.
  private var backlog = ByteQueue()
  private(set) var lastActivity: ContinuousClock.Instant

  init(
    number: UInt64, peer: String, socket: Int32, server: Server, sockets: SocketSet
  ) throws(Errno) {
    (self.number, self.peer, self.socket, self.server) = (number, peer, socket, server)
    lastActivity = server.now
    var time = timespec()
    clock_gettime(CLOCK_REALTIME, &time)
    opened = Int64(time.tv_sec) * 1_000_000_000 + Int64(time.tv_nsec)
    token = try sockets.add(socket, self)
  }

  // MARK: In

  func socket(isReadyFor readiness: Readiness) {
    if !readiness.isDisjoint(with: .writable), !backlog.isEmpty { sendBacklog() }
    if !readiness.isDisjoint(with: [.readable, .hungUp]) {
      isReadable = true
      standInLine()
    }
  }

  /// Whether there may be something to receive, and it may be received.
  private var canReceive: Bool {
    isReadable && !inputEnded && !isClosed && !server.isDraining && outstanding < Self.window
  }

  private var outstanding: Int { inJournal + backlog.count }

  private func standInLine() {
    if canReceive { server.line(up: self) }
  }

  enum Reception {
    /// There may be more.
    case more
    /// Not before the socket says so.
    case nothing
    /// The journal has no room now.
    case noRoom
  }

  /// Receives once, straight into the journal.
  func receive() -> Reception {
    guard isRecorded || recordOpening() else { return .noRoom }
    guard canReceive else { return .nothing }
    var failure: Int32 = 0
    let count = server.journal.append(
      .data, of: number, at: received, most: min(Self.share, Self.window - outstanding), for: self
    ) { bytes in
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
      return canReceive ? .more : .nothing
    default:
      isReadable = false
      if failure == 0 {
        inputEnded = true
        closeIfDone()
      } else if failure != EAGAIN {
        close("\(Errno(rawValue: failure))")
      }
      return .nothing
    }
  }

  private func recordOpening() -> Bool {
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

  /// Records that the connection has closed. `false`: the journal has no room now.
  func recordClosing() -> Bool {
    // Its position would be behind bytes that are not there.
    if isLost { return true }
    guard isRecorded || recordOpening() else { return false }
    return server.journal.append(.closed, of: number, at: received, most: 1, for: self) { _ in 0 }
      != nil
  }

  // MARK: Out

  func becameDurable(_ bytes: UnsafeRawBufferPointer) {
    inJournal -= bytes.count
    guard !isClosed else { return }
    var rest = bytes
    // Behind a backlog there is no place but its end.
    if backlog.isEmpty { rest = .init(rebasing: bytes[send(bytes)...]) }
    if !rest.isEmpty && !isClosed { backlog.append(rest) }
    closeIfDone()
    standInLine()
  }

  private func sendBacklog() {
    let sent = backlog.withUnsafeBytes { send($0) }
    backlog.removeFirst(sent)
    closeIfDone()
    standInLine()
  }

  /// - Returns: how many bytes the socket took; the rest when it is writable.
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

  /// Nothing more will come, and all is echoed.
  private func closeIfDone() {
    if inputEnded && outstanding == 0 { close(nil) }
  }

  /// While the server shuts down, nothing more is received: the connection closes when all that was
  /// is echoed, and has arrived. To close it earlier would throw away what is on its way, because
  /// the client may have sent more, and to close a socket with bytes unread resets the connection.
  func drain() {
    guard outstanding == 0 else { return }
    shutdown(socket, Int32(SHUT_WR))
    var unacknowledged: Int32 = 0
    if ioctl(socket, UInt(TIOCOUTQ), &unacknowledged) != 0 || unacknowledged == 0 { close(nil) }
  }

  func journalFailed(_ error: any Error) {
    isLost = true
    close("the journal failed: \(error)")
  }

  /// - Parameter reason: what went wrong; `nil` for the normal end.
  func close(_ reason: String?) {
    guard !isClosed else { return }
    isClosed = true
    server.closing(self, reason)
    server.sockets.remove(token, socket)
    Glibc.close(socket)
    backlog = ByteQueue()
  }
}

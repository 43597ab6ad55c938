// SPDX-License-Identifier: Apache-2.0

import CSockets
import Dispatch
import DispatchAIO
import Glibc
import SystemPackage

/// The reason why a server cannot listen, as a sentence for its user.
public struct ListenError: Error, CustomStringConvertible {
  public let description: String
}

/// A listening socket: TCP, or Unix.
///
/// - Safety: `@unchecked Sendable` because it is confined to the queue of the context it is
///   activated in.
public final class Listener: @unchecked Sendable {
  public enum Address: Sendable {
    case tcp(host: String, port: UInt16)
    case unix(path: FilePath)
  }

  /// For how long accepting pauses where there are no descriptors.
  private static let pause = DispatchTimeInterval.milliseconds(100)

  /// The address that it listens on: `127.0.0.1:7777`, or a path.
  public let name: String
  private let descriptor: Int32
  private let unixSocket: UnixSocketFile?
  private var source: AIOSource?
  private var retryTimer: AIOTimerSource?
  private var isPaused = false
  private var accepted: (Result<(socket: Int32, peer: String), Errno>) -> Void = { _ in }

  public init(_ address: Address, backlog: Int32 = 1024) throws(ListenError) {
    _ = lastingTimer
    switch address {
    case .tcp(let host, let port):
      unixSocket = nil
      (descriptor, name) = try Self.listen(host: host, port: port, backlog: backlog)
    case .unix(let path):
      descriptor = try Self.listen(path: path, backlog: backlog)
      (name, unixSocket) = (path.escaped, UnixSocketFile(path))
    }
  }

  /// Adopts a socket that is listening already, as an init system passes it.
  public init(adopting descriptor: Int32) throws(ListenError) {
    var isListening: Int32 = 0
    var length = socklen_t(MemoryLayout<Int32>.size)
    guard getsockopt(descriptor, SOL_SOCKET, SO_ACCEPTCONN, &isListening, &length) == 0,
      isListening != 0
    else { throw ListenError(description: "descriptor \(descriptor) is no listening socket") }
    _ = lastingTimer
    _ = fcntl(descriptor, F_SETFL, fcntl(descriptor, F_GETFL) | O_NONBLOCK)
    _ = fcntl(descriptor, F_SETFD, FD_CLOEXEC)
    self.descriptor = descriptor
    name = SocketAddress(localOf: descriptor).description
    unixSocket = nil
  }

  deinit {
    // It has been activated, and `close` and the source see to the rest.
    guard retryTimer == nil else { return }
    // Something else failed that its server needs.
    Glibc.close(descriptor)
    unixSocket?.unlink()
  }

  /// Starts to accept. Once.
  ///
  /// - Parameters:
  ///   - context: in whose ring the socket is watched.
  ///   - accepted: called on the context's queue for each connection with its descriptor, which is
  ///     non-blocking, and its peer's address; or with the errno of an accept that failed because
  ///     the process or the system is short of something. Accepting pauses for 100 ms then.
  /// - Throws: if a source cannot be made.
  public func activate(
    in context: AIOContext,
    _ accepted: @escaping (Result<(socket: Int32, peer: String), Errno>) -> Void
  ) throws(AIOError) {
    self.accepted = accepted
    // Made now: a listener that pauses because there are no descriptors could not make it then.
    let retryTimer = try context.makeTimerSource()
    let source: AIOSource
    do throws(AIOError) {
      source = try context.makeReadSource(fileDescriptor: descriptor)
    } catch {
      retryTimer.cancel()
      throw error
    }
    retryTimer.setEventHandler { [weak self] in self?.resume() }
    source.setEventHandler { [weak self] in self?.accept() }
    source.setCancelHandler { [descriptor] in Glibc.close(descriptor) }
    (self.source, self.retryTimer) = (source, retryTimer)
    retryTimer.activate()
    source.activate()
  }

  private func accept() {
    // A few at a time, so that others on the queue get their turn. The source fires for the rest.
    for _ in 0..<64 {
      guard source != nil, !isPaused else { return }
      var address = sockaddr_storage()
      var length = socklen_t(0)
      let socket = csockets_accept(descriptor, &address, &length)
      switch -socket {
      case EAGAIN: return
      case EINTR, ECONNABORTED: continue
      case let errno where socket < 0:
        pause()
        return accepted(.failure(Errno(rawValue: errno)))
      default:
        let peer = SocketAddress(address, length)
        if peer.isInternet { Self.setUpConnection(socket) }
        accepted(.success((socket, peer.description)))
      }
    }
  }

  private func pause() {
    isPaused = true
    source?.suspend()
    retryTimer?.schedule(deadline: .now() + Self.pause)
  }

  private func resume() {
    guard isPaused else { return }
    isPaused = false
    source?.resume()
  }

  /// Stops listening; further connections are refused by the kernel. On the context's queue.
  public func close() {
    guard let source else { return }
    self.source = nil
    source.cancel()
    retryTimer?.cancel()
    unixSocket?.unlink()
  }

  // MARK: Sockets

  /// Sets the options of a connection's TCP socket: no delay of small replies, and probes of a peer
  /// that says nothing, so that one that has vanished (a power cut, a cable) does not hold its
  /// connection for ever. It is closed after 10 minutes without any answer.
  static func setUpConnection(_ socket: Int32) {
    func set(_ level: Int32, _ option: Int32, _ value: Int32) {
      var value = value
      setsockopt(socket, level, option, &value, socklen_t(MemoryLayout<Int32>.size))
    }
    set(Int32(IPPROTO_TCP), TCP_NODELAY, 1)
    set(SOL_SOCKET, SO_KEEPALIVE, 1)
    set(Int32(IPPROTO_TCP), TCP_KEEPIDLE, 300)
    set(Int32(IPPROTO_TCP), TCP_KEEPINTVL, 60)
    set(Int32(IPPROTO_TCP), TCP_KEEPCNT, 5)
  }

  private static func listen(
    host: String, port: UInt16, backlog: Int32
  ) throws(ListenError) -> (Int32, String) {
    var hints = addrinfo()
    hints.ai_socktype = Int32(SOCK_STREAM.rawValue)
    hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV
    var found: UnsafeMutablePointer<addrinfo>?
    let answer = getaddrinfo(host, String(port), &hints, &found)
    guard answer == 0, let first = found else {
      throw ListenError(
        description: "cannot listen on \(host):\(port): \(String(cString: gai_strerror(answer)))")
    }
    defer { freeaddrinfo(first) }
    let socket = csockets_stream_socket(first.pointee.ai_family)
    guard socket >= 0 else {
      throw ListenError(description: "cannot make a socket: \(Errno(rawValue: -socket))")
    }
    var yes: Int32 = 1
    setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, socklen_t(MemoryLayout<Int32>.size))
    guard bind(socket, first.pointee.ai_addr, first.pointee.ai_addrlen) == 0,
      Glibc.listen(socket, backlog) == 0
    else {
      let errno = Errno(rawValue: errno)
      Glibc.close(socket)
      throw ListenError(
        description: "cannot listen on \(host):\(port): \(errno)"
          + (errno == .addressInUse ? "; choose another port, or 0 for a free one" : ""))
    }
    return (socket, SocketAddress(localOf: socket).description)
  }

  private static func listen(path: FilePath, backlog: Int32) throws(ListenError) -> Int32 {
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    let room = MemoryLayout.size(ofValue: address.sun_path) - 1
    guard !path.isEmpty, path.length <= room else {
      throw ListenError(
        description: "cannot listen on '\(path.escaped)': a socket's path has 1 to \(room) bytes")
    }
    path.withPlatformString { name in
      withUnsafeMutableBytes(of: &address.sun_path) {
        $0.copyBytes(from: UnsafeRawBufferPointer(start: name, count: path.length))
      }
    }
    let socket = csockets_stream_socket(AF_UNIX)
    guard socket >= 0 else {
      throw ListenError(description: "cannot make a socket: \(Errno(rawValue: -socket))")
    }
    func call(_ body: (Int32, UnsafePointer<sockaddr>, socklen_t) -> Int32) -> Errno? {
      withUnsafePointer(to: &address) {
        $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
          body(socket, $0, socklen_t(MemoryLayout<sockaddr_un>.size)) == 0
            ? nil : Errno(rawValue: errno)
        }
      }
    }
    var failure = call(bind)
    if failure == .addressInUse {
      var status = stat()
      if path.withPlatformString({ lstat($0, &status) }) == 0, status.st_mode & S_IFMT != S_IFSOCK {
        Glibc.close(socket)
        throw ListenError(
          description: """
            cannot listen on \(path.escaped): a file of that name is there, and it is no socket
            """)
      }
      if call(connect) == .connectionRefused {
        // Left behind by a server that was killed: nobody answers there.
        path.withPlatformString { _ = unlink($0) }
        failure = call(bind)
      }
    }
    if failure == nil, Glibc.listen(socket, backlog) != 0 { failure = Errno(rawValue: errno) }
    if let failure {
      Glibc.close(socket)
      throw ListenError(
        description: "cannot listen on \(path.escaped): \(failure)"
          + (failure == .addressInUse ? "; another server answers there" : ""))
    }
    return socket
  }
}

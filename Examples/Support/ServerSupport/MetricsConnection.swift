// SPDX-License-Identifier: Apache-2.0

import DispatchAIO
import Glibc

/// A connection of `--metrics`, from its request to its answer.
///
/// - Safety: `@unchecked Sendable` because it is confined to its context's queue.
final class MetricsConnection: @unchecked Sendable {
  /// The most that a request may have.
  private static let requestLimit = 4096

  private let socket: Int32
  private let context: AIOContext
  private let collect: MetricsServer.Collect
  private let closed: (ObjectIdentifier) -> Void
  private var sources: SocketSources?
  private var timer: AIOTimerSource?
  private var request: [UInt8] = []
  private var answer: [UInt8]?
  private var sent = 0
  private var isAsked = false
  /// The number of bytes that came after the request.
  private var discarded = 0

  /// Takes a non-blocking socket, which it closes.
  ///
  /// - Parameter closed: called when it has closed.
  init(
    _ socket: Int32, in context: AIOContext, collect: @escaping MetricsServer.Collect,
    closed: @escaping (ObjectIdentifier) -> Void
  ) throws(AIOError) {
    (self.socket, self.context, self.collect, self.closed) = (socket, context, collect, closed)
  }

  /// - Throws: if the socket cannot be watched; it is closed then.
  func activate(timeout: Duration) throws(AIOError) {
    do throws(AIOError) {
      sources = try SocketSources(socket, in: context) { [weak self] in
        self?.receive()
      } becameWritable: { [weak self] in
        self?.send()
      }
    } catch {
      closeSocket(socket)
      closed(ObjectIdentifier(self))
      throw error
    }
    do throws(AIOError) {
      timer = try context.once(after: timeout) { [weak self] in self?.close() }
    } catch {
      close()
      throw error
    }
  }

  func close() {
    guard let sources else { return }
    self.sources = nil
    timer?.cancel()
    sources.close()
    closed(ObjectIdentifier(self))
  }

  private func receive() {
    var bytes = [UInt8](repeating: 0, count: 1024)
    let count = read(socket, &bytes, bytes.count)
    if count < 0 && (errno == EAGAIN || errno == EINTR) { return }
    guard count > 0 else { return close() }
    guard !isAsked else {
      // After its request a peer has nothing to say but its end.
      discarded += count
      if discarded > Self.requestLimit { close() }
      return
    }
    request += bytes[..<count]
    if let end = Self.endOfHead(request) {
      isAsked = true
      // What follows is not read before the answer: it would be the peer's fault.
      sources?.awaitsInput = false
      respond(to: String(decoding: request[..<end], as: UTF8.self))
    } else if request.count >= Self.requestLimit {
      isAsked = true
      reply("431 Request Header Fields Too Large", "the request is too long\n")
    }
  }

  private static func endOfHead(_ bytes: [UInt8]) -> Int? {
    guard bytes.count >= 4 else { return nil }
    return (0...bytes.count - 4).first { bytes[$0..<$0 + 4].elementsEqual([13, 10, 13, 10]) }
  }

  private func respond(to head: String) {
    let line = head.prefix { $0 != "\r\n" }.split(separator: " ")
    guard line.count == 3, line[2].hasPrefix("HTTP/1.") else {
      return reply("400 Bad Request", "this is no request of HTTP/1\n")
    }
    guard line[0] == "GET" || line[0] == "HEAD" else {
      return reply("405 Method Not Allowed", "GET and HEAD\n", fields: "Allow: GET, HEAD\r\n")
    }
    guard line[1] == "/metrics" || line[1].hasPrefix("/metrics?") else {
      return reply("404 Not Found", "there is /metrics\n")
    }
    let hasBody = line[0] == "GET"
    collect { [weak self, context] metrics in
      context.async { [weak self] in
        self?.reply("200 OK", metrics.text, version: "; version=0.0.4", hasBody: hasBody)
      }
    }
  }

  private func reply(
    _ status: String, _ body: String, version: String = "", fields: String = "",
    hasBody: Bool = true
  ) {
    guard sources != nil else { return }
    let head = """
      HTTP/1.1 \(status)\r
      Content-Type: text/plain\(version); charset=utf-8\r
      Content-Length: \(body.utf8.count)\r
      Connection: close\r
      \(fields)\r

      """
    answer = Array((hasBody ? head + body : head).utf8)
    send()
  }

  private func send() {
    guard let answer else { return }
    while sent < answer.count {
      let count = answer[sent...].withUnsafeBytes {
        Glibc.send(socket, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
      }
      if count < 0 {
        if errno == EINTR { continue }
        guard errno == EAGAIN else { return close() }
        sources?.awaitsRoom = true
        return
      }
      sent += count
    }
    sources?.awaitsRoom = false
    // Closed once the peer has taken all and closed its own side, or its time is over: to close a
    // socket with unread bytes would reset the connection.
    shutdown(socket, Int32(SHUT_WR))
    sources?.awaitsInput = true
  }
}

/// Closes a socket that nobody watches.
func closeSocket(_ socket: Int32) { Glibc.close(socket) }

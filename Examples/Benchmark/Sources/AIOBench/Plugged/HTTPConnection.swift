// SPDX-License-Identifier: Apache-2.0
//
// What the file servers on Dispatch that `plugged` compares have in common: HTTP on a non-blocking
// socket, without waiting and without files.

import CServers
import Foundation

/// A request for a file, or a part of it.
struct FileRequest {
  var path: String
  /// The bytes from the first to the last, which is included; `nil` is all of the file.
  var bytes: ClosedRange<Int>?

  /// The part of a file of so many bytes that is asked for.
  func range(in size: Int) -> Range<Int> {
    guard let bytes else { return 0..<size }
    return min(bytes.lowerBound, size)..<min(bytes.upperBound + 1, size)
  }
}

/// The end of a connection: its peer has closed it, or it is of no use any more.
struct ConnectionEnded: Error {}

/// The requests and answers of a connection. Confined to its server's queue.
class HTTPConnection {
  let socket: Int32
  private var received = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 16)
  private var count = 0
  private let head = UnsafeMutableRawBufferPointer.allocate(byteCount: 256, alignment: 16)
  /// What has not been sent of an answer: of the head and of the body.
  private var unsent: (head: Range<Int>, body: Range<Int>) = (0..<0, 0..<0)

  init(_ socket: Int32) { self.socket = socket }

  deinit {
    received.deallocate()
    head.deallocate()
  }

  // MARK: Requests

  /// Receives what there is.
  func receive() throws(ConnectionEnded) {
    let answer = read(socket, received.baseAddress! + count, received.count - count)
    if answer > 0 { count += answer } else if answer == 0 || errno != EAGAIN { throw .init() }
  }

  /// The next request that has been received in whole.
  func nextRequest() throws(ConnectionEnded) -> FileRequest? {
    let bytes = UnsafeRawBufferPointer(rebasing: received[..<count])
    guard let end = find("\r\n\r\n", in: bytes) else {
      if count == received.count { throw .init() }
      return nil
    }
    let text = UnsafeRawBufferPointer(rebasing: bytes[..<end])
    guard text.starts(with: "GET /".utf8), let pathEnd = text[5...].firstIndex(of: 0x20) else {
      throw .init()
    }
    let path = String(decoding: text[5..<pathEnd], as: UTF8.self)
    var range: ClosedRange<Int>?
    if let at = find("Range: bytes=", in: text) {
      var index = at + 13
      let first = Self.number(text, &index)
      index += 1
      range = first...max(first, Self.number(text, &index))
    }
    let used = end + 4
    count -= used
    if count > 0 { memmove(received.baseAddress!, received.baseAddress! + used, count) }
    // Nothing outside of the directory.
    return FileRequest(path: path.utf8.contains(0x2e) ? "" : path, bytes: range)
  }

  private func find(_ text: StaticString, in bytes: UnsafeRawBufferPointer) -> Int? {
    let (length, first) = (text.utf8CodeUnitCount, Int32(text.utf8Start.pointee))
    guard let base = bytes.baseAddress, bytes.count >= length else { return nil }
    var index = 0
    // Where the first byte is, and room for the others.
    while let place = memchr(base + index, first, bytes.count - length + 1 - index) {
      index = UnsafeRawPointer(place) - base
      if memcmp(place, text.utf8Start, length) == 0 { return index }
      index += 1
    }
    return nil
  }

  private static func number(_ text: UnsafeRawBufferPointer, _ index: inout Int) -> Int {
    var value = 0
    // A number that is too large for a file is as good as any other.
    while index < text.count, case 0x30...0x39 = text[index] {
      if value < 1 << 56 { value = value * 10 + Int(text[index] - 0x30) }
      index += 1
    }
    return value
  }

  // MARK: Answers

  /// Begins an answer: `range` of a file of `size` bytes; `nil` says that there is no such file.
  func begin(_ request: FileRequest, _ range: Range<Int>?, of size: Int) {
    var count = 0
    func append(_ text: StaticString) {
      memcpy(head.baseAddress! + count, text.utf8Start, text.utf8CodeUnitCount)
      count += text.utf8CodeUnitCount
    }
    func append(_ number: Int) {
      var (rest, digits) = (number, 1)
      while rest > 9 { (rest, digits) = (rest / 10, digits + 1) }
      rest = number
      for place in stride(from: count + digits - 1, through: count, by: -1) {
        head[place] = UInt8(rest % 10) + 0x30
        rest /= 10
      }
      count += digits
    }
    if let range {
      append(request.bytes == nil ? "HTTP/1.1 200 OK\r\n" : "HTTP/1.1 206 Partial Content\r\n")
      append("Content-Length: ")
      append(range.count)
      if request.bytes != nil {
        append("\r\nContent-Range: bytes ")
        append(range.lowerBound)
        append("-")
        append(max(range.lowerBound, range.upperBound - 1))
        append("/")
        append(size)
      }
      append("\r\n\r\n")
    } else {
      append("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
    }
    unsent = (0..<count, 0..<(range?.count ?? 0))
  }

  /// The head of the answer that was begun, for who sends it.
  func takeHead() -> [UInt8] {
    defer { unsent = (0..<0, 0..<0) }
    return Array(UnsafeRawBufferPointer(rebasing: head[unsent.head]))
  }

  /// Sends what has not been sent of the answer, as much as there is room for.
  ///
  /// - Parameter body: The answer's whole body.
  /// - Returns: Whether all has been sent.
  func send(_ body: UnsafeRawBufferPointer) throws(ConnectionEnded) -> Bool {
    while !unsent.head.isEmpty || !unsent.body.isEmpty {
      var parts = (
        iovec(iov_base: head.baseAddress! + unsent.head.lowerBound, iov_len: unsent.head.count),
        iovec(
          iov_base: UnsafeMutableRawPointer(
            mutating: body.baseAddress.map { $0 + unsent.body.lowerBound }),
          iov_len: unsent.body.count)
      )
      let answer = withUnsafePointer(to: &parts) {
        $0.withMemoryRebound(to: iovec.self, capacity: 2) { writev(socket, $0, 2) }
      }
      guard answer >= 0 else {
        if errno == EAGAIN { return false }
        throw .init()
      }
      let ofHead = min(answer, unsent.head.count)
      unsent.head.removeFirst(ofHead)
      unsent.body.removeFirst(answer - ofHead)
    }
    return true
  }
}

// MARK: Listening

enum HTTPListener {
  /// A non-blocking socket that listens on a free port of the loopback.
  static func make() throws -> Int32 {
    let socket = cservers_listen()
    guard socket >= 0 else {
      throw BenchError("cannot listen: \(String(cString: strerror(-socket)))")
    }
    return socket
  }

  /// Says where the socket listens, as `aio-httpd` does.
  static func announce(_ socket: Int32) {
    print("listening on 127.0.0.1:\(cservers_port(socket))")
    fflush(nil)
  }

  /// Accepts what there is: non-blocking sockets.
  static func acceptAll(_ socket: Int32, _ body: (Int32) -> Void) {
    while case let accepted = cservers_accept(socket), accepted >= 0 { body(accepted) }
  }
}

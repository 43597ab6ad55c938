// SPDX-License-Identifier: Apache-2.0

import Foundation
import SystemPackage
import XCTest

@testable import BlockServer

/// An aio-nbd process on a Unix socket.
final class NBDServer: ServerProcess, @unchecked Sendable {
  let directory: TemporaryDirectory
  let socket: String

  /// Starts a server and waits until it is ready.
  init(_ directory: TemporaryDirectory, _ files: [String], _ options: [String] = []) throws {
    self.directory = directory
    socket = directory.path.appending("socket\(Self.nextNumber())").string
    try super.init(
      "aio-nbd", ["serve"] + files + ["--unix", socket] + options,
      log: directory.path.appending("log"), in: directory.path)
    XCTAssertEqual(address, socket)
  }

  func uri(_ export: String = "disk") -> String { "nbd+unix:///\(export)?socket=\(socket)" }
}

/// A client that says exactly what a test wants it to.
final class NBDClient {
  let socket: Int32
  private(set) var size: UInt64 = 0
  private(set) var flags: UInt16 = 0
  private let structured: Bool
  private var lastCookie: UInt64 = 0

  struct Closed: Error {}

  struct Reply: Equatable {
    var cookie: UInt64
    /// 0: it succeeded.
    var error: UInt32 = 0
    var message = ""
    /// By offset.
    var data: [UInt64: [UInt8]] = [:]
    var extents: [(length: UInt32, flags: UInt32)] = []

    /// The data as one.
    var bytes: [UInt8] { data.sorted { $0.key < $1.key }.flatMap(\.value) }

    static func == (a: Reply, b: Reply) -> Bool {
      a.cookie == b.cookie && a.error == b.error && a.data == b.data
    }
  }

  /// Connects, and no more.
  init(connect path: String) throws {
    structured = false
    socket = try Self.connect(path)
  }

  /// Connects, and chooses an export.
  convenience init(
    _ server: NBDServer, export: String = "disk", structured: Bool = true, context: Bool = true
  ) throws {
    try self.init(
      Self.connect(server.socket), export: export, structured: structured, context: context)
  }

  /// Chooses an export, over a socket that is connected.
  init(
    _ socket: Int32, export: String, structured: Bool = true, context: Bool = true
  ) throws {
    self.structured = structured
    self.socket = socket
    try receive(18)
    try send(Message.clientFlags())
    if structured {
      try send(Message.option(8))
      try optionReply()
      if context {
        try send(Message.option(10, Message.queries(export, ["base:allocation"])))
        try optionReply()
      }
    }
    try send(Message.option(7, Message.info(export, [])))
    try optionReply()
  }

  static func address(_ path: String) -> sockaddr_un {
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8) }
    return address
  }

  static func connect(_ path: String) throws -> Int32 {
    let socket = Glibc.socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
    var address = address(path)
    let connected = withUnsafePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        Glibc.connect(socket, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
      }
    }
    guard connected == 0 else { throw Errno(rawValue: errno) }
    var patience = timeval(tv_sec: 30, tv_usec: 0)
    setsockopt(
      socket, SOL_SOCKET, SO_RCVTIMEO, &patience, socklen_t(MemoryLayout<timeval>.size))
    setsockopt(
      socket, SOL_SOCKET, SO_SNDTIMEO, &patience, socklen_t(MemoryLayout<timeval>.size))
    return socket
  }

  deinit { Glibc.close(socket) }

  /// Sends what the socket takes at once.
  ///
  /// - Returns: whether it took all.
  @discardableResult
  func sendAtOnce(_ bytes: [UInt8]) -> Bool {
    Glibc.send(socket, bytes, bytes.count, Int32(MSG_NOSIGNAL | MSG_DONTWAIT)) == bytes.count
  }

  // MARK: Bytes

  func send(_ bytes: [UInt8]) throws {
    var sent = 0
    while sent < bytes.count {
      let count = bytes.withUnsafeBytes {
        Glibc.send(socket, $0.baseAddress! + sent, bytes.count - sent, Int32(MSG_NOSIGNAL))
      }
      if count < 0 && errno == EINTR { continue }
      guard count > 0 else { throw Closed() }
      sent += count
    }
  }

  @discardableResult
  func receive(_ count: Int) throws -> [UInt8] {
    // The standard library would write to the empty array that all threads share.
    guard count > 0 else { return [] }
    return try [UInt8](unsafeUninitializedCapacity: count) { buffer, filled in
      while filled < count {
        let got = recv(socket, buffer.baseAddress! + filled, count - filled, 0)
        if got < 0 && errno == EINTR { continue }
        guard got > 0 else { throw Closed() }
        filled += got
      }
    }
  }

  /// Receives so many bytes, which nobody looks at.
  func skip(_ count: Int) -> Bool {
    var buffer = [UInt8](repeating: 0, count: 1 << 20)
    var rest = count
    while rest > 0 {
      let got = recv(socket, &buffer, min(buffer.count, rest), 0)
      if got < 0 && errno == EINTR { continue }
      guard got > 0 else { return false }
      rest -= got
    }
    return true
  }

  /// Waits until the other end has closed, and passes over what comes before; `false`: it has not
  /// within the time.
  func isClosedSoon() -> Bool {
    var buffer = [UInt8](repeating: 0, count: 1 << 16)
    while true {
      let got = recv(socket, &buffer, buffer.count, 0)
      if got == 0 { return true }
      if got < 0 && errno != EINTR { return errno == ECONNRESET }
    }
  }

  private func optionReply() throws {
    while true {
      let head = try receive(20)
      let type: UInt32 = head.withUnsafeBytes { $0.number(at: 12) }
      let data = try receive(Int(head.withUnsafeBytes { $0.number(UInt32.self, at: 16) }))
      guard type & 0x8000_0000 == 0 else {
        throw NBDServer.Failure(description: String(decoding: data, as: UTF8.self))
      }
      if type == 3, data.count == 12 {
        size = data.withUnsafeBytes { $0.number(at: 2) }
        flags = data.withUnsafeBytes { $0.number(at: 10) }
      }
      if type == 1 { return }
    }
  }

  // MARK: Requests

  /// Sends a request.
  ///
  /// - Returns: its cookie.
  @discardableResult
  func ask(
    _ command: NBD.Command, flags: NBD.CommandFlags = [], at offset: Int = 0, count: Int = 0,
    payload: [UInt8] = []
  ) throws -> UInt64 {
    lastCookie += 1
    try send(
      Message.request(
        command.rawValue, flags: flags.rawValue, cookie: lastCookie, offset: UInt64(offset),
        length: UInt32(payload.isEmpty ? count : payload.count)) + payload)
    return lastCookie
  }

  /// How many bytes each read asked for, by cookie, for simple replies.
  private var expected: [UInt64: Int] = [:]

  /// The next reply that is complete, of whichever request.
  func reply() throws -> Reply {
    while true {
      let magic = try receive(4).withUnsafeBytes { $0.number(UInt32.self, at: 0) }
      if magic == NBD.simpleReplyMagic {
        let head = try receive(12)
        var reply = Reply(cookie: head.withUnsafeBytes { $0.number(at: 4) })
        reply.error = head.withUnsafeBytes { $0.number(at: 0) }
        if reply.error == 0, let count = expected.removeValue(forKey: reply.cookie) {
          reply.data[0] = try receive(count)
        }
        return reply
      }
      guard magic == NBD.structuredReplyMagic else {
        throw NBDServer.Failure(description: "magic \(magic)")
      }
      let head = try receive(16)
      let (flags, type): (UInt16, UInt16) = head.withUnsafeBytes {
        ($0.number(at: 0), $0.number(at: 2))
      }
      let cookie: UInt64 = head.withUnsafeBytes { $0.number(at: 4) }
      let payload = try receive(Int(head.withUnsafeBytes { $0.number(UInt32.self, at: 12) }))
      var reply = partial.removeValue(forKey: cookie) ?? Reply(cookie: cookie)
      payload.withUnsafeBytes { payload in
        switch NBD.Chunk(rawValue: type) {
        case .offsetData: reply.data[payload.number(at: 0)] = Array(payload[8...])
        case .error:
          reply.error = payload.number(at: 0)
          reply.message = String(decoding: payload[6...], as: UTF8.self)
        case .blockStatus:
          for position in stride(from: 4, to: payload.count, by: 8) {
            reply.extents.append((payload.number(at: position), payload.number(at: position + 4)))
          }
        case .some(.none): break
        case nil: XCTFail("chunk \(type)")
        }
      }
      if flags & NBD.replyFlagDone != 0 { return reply }
      partial[cookie] = reply
    }
  }
  private var partial: [UInt64: Reply] = [:]

  /// Sends a request and waits for its reply, the only one to come.
  @discardableResult
  func call(
    _ command: NBD.Command, flags: NBD.CommandFlags = [], at offset: Int = 0, count: Int = 0,
    payload: [UInt8] = []
  ) throws -> Reply {
    let cookie = try ask(command, flags: flags, at: offset, count: count, payload: payload)
    if command == .read && !structured { expected[cookie] = count }
    let reply = try reply()
    XCTAssertEqual(reply.cookie, cookie)
    return reply
  }

  func read(_ range: Range<Int>) throws -> [UInt8] {
    let reply = try call(.read, at: range.lowerBound, count: range.count)
    guard reply.error == 0 else { throw Errno(rawValue: Int32(reply.error)) }
    return reply.bytes
  }

  func write(_ bytes: [UInt8], at offset: Int, flags: NBD.CommandFlags = []) throws {
    let reply = try call(.write, flags: flags, at: offset, payload: bytes)
    guard reply.error == 0 else { throw Errno(rawValue: Int32(reply.error)) }
  }
}

// SPDX-License-Identifier: Apache-2.0

import Dispatch
import DispatchAIO
import Foundation
import SystemPackage
import XCTest

@testable import ServerSupport

final class ListenerTests: XCTestCase {
  private let queue = DispatchQueue(label: "test.listener")
  private func makeContext() throws -> AIOContext { try AIOContext(queueDepth: 1, queue: queue) }

  private func option(_ level: Int32, _ option: Int32, of socket: Int32) -> Int32 {
    var value: Int32 = -1
    var length = socklen_t(MemoryLayout<Int32>.size)
    XCTAssertEqual(getsockopt(socket, level, option, &value, &length), 0)
    return value
  }

  /// A connection whose peer has vanished is found out: on sockets accepted here, and inherited
  /// ones.
  func testConnectionsAreProbed() throws {
    let context = try makeContext()
    let listener = try Listener(.tcp(host: "127.0.0.1", port: 0))
    let accepted = Promise<Int32>()
    try listener.activate(in: context) {
      if case .success(let (socket, _)) = $0 { accepted.fulfil(socket) }
    }
    let port = try XCTUnwrap(listener.name.split(separator: ":").last.flatMap { UInt16($0) })
    let client = try EchoClient(port: port)
    let socket = try accepted.wait()
    defer { close(socket) }
    let inherited = try Listener.adoptConnection(client.socket)
    defer { close(inherited) }
    for socket in [socket, inherited] {
      XCTAssertNotEqual(option(SOL_SOCKET, SO_KEEPALIVE, of: socket), 0)
      XCTAssertEqual(option(Int32(IPPROTO_TCP), TCP_KEEPIDLE, of: socket), 300)
      XCTAssertNotEqual(option(Int32(IPPROTO_TCP), TCP_NODELAY, of: socket), 0)
    }
    queue.sync { listener.close() }
  }

  func testAUnixSocketIsRemovedAtTheEnd() throws {
    let directory = try TemporaryDirectory()
    let context = try makeContext()
    // Bytes that no `String` keeps, too.
    for name in [[0x61], [0x73, 0xFF]] as [[CChar.Magnitude]] {
      let path = directory.path.appending(
        FilePath.Component(platformString: name.map(CChar.init(bitPattern:)) + [0])!)
      let listener = try Listener(.unix(path: path))
      try listener.activate(in: context) { _ in }
      XCTAssertEqual(path.withPlatformString { access($0, F_OK) }, 0)
      queue.sync { listener.close() }
      XCTAssertNotEqual(path.withPlatformString { access($0, F_OK) }, 0)
    }
  }

  /// So is that of a server that does not begin, because something else failed that it needs.
  func testASocketThatIsNeverServedIsRemoved() throws {
    let directory = try TemporaryDirectory()
    let path = directory.path.appending("socket")
    var listener = Optional(try Listener(.unix(path: path)))
    XCTAssertEqual(access(path.string, F_OK), 0)
    XCTAssertNotNil(listener)
    listener = nil
    XCTAssertNotEqual(access(path.string, F_OK), 0)
  }

  /// Another server has taken over the path, or somebody has put a file there.
  func testAnothersSocketIsLeftAlone() throws {
    let directory = try TemporaryDirectory()
    let context = try makeContext()
    let path = directory.path.appending("socket")
    let listener = try Listener(.unix(path: path))
    try listener.activate(in: context) { _ in }
    XCTAssertEqual(unlink(path.string), 0)
    let other = try Listener(.unix(path: path))
    try other.activate(in: context) { _ in }
    queue.sync { listener.close() }
    XCTAssertEqual(access(path.string, F_OK), 0, "the other server's socket is gone")
    _ = try EchoClient(unix: path.string)

    XCTAssertEqual(unlink(path.string), 0)
    _ = try directory.makeFile("socket", size: 3)
    queue.sync { other.close() }
    XCTAssertEqual(try directory.contents("socket").count, 3)
  }
}

// SPDX-License-Identifier: Apache-2.0

#if ServiceLifecycle
import Dispatch
import DispatchAIOServiceLifecycle
import Foundation
import Glibc
import Logging
import ServerSupport
import ServiceLifecycle
import SystemPackage
import XCTest

@testable import FileServer

/// The servers as services: the example of files, and one that does nothing.
final class GracefulServerServiceTests: XCTestCase {
  /// Ends as it is told to, when it is told to.
  private final class Stub: GracefulServer {
    let queue = DispatchQueue(label: "stub")
    let status: Int32
    let whenEnded = Lock<(@Sendable (Int32) -> Void)?>(nil)
    let reasons = Lock<[String]>([])

    init(status: Int32) { self.status = status }

    func start(whenEnded: @escaping @Sendable (Int32) -> Void) throws {
      self.whenEnded.withLock { $0 = whenEnded }
    }

    func shutDown(because reason: String) {
      reasons.withLock { $0.append(reason) }
      whenEnded.withLock { $0.take() }?(status)
    }
  }

  private var logger: Logger {
    var logger = Logger(label: "test")
    logger.logLevel = .critical
    return logger
  }

  private func group(_ server: any GracefulServer) -> ServiceGroup {
    ServiceGroup(services: [GracefulServerService(server)], logger: logger)
  }

  /// An answer of which the client has read nothing at the shutdown is sent to its end, and only
  /// then the group ends.
  func testAnAnswerInFlightIsSentBeforeTheGroupEnds() async throws {
    let parent = ProcessInfo.processInfo.environment["TMPDIR"] ?? "/var/tmp"
    let directory = FilePath("\(parent)/dispatch-aio-\(UUID().uuidString)")
    try FileManager.default.createDirectory(
      atPath: directory.string, withIntermediateDirectories: false)
    addTeardownBlock { try? FileManager.default.removeItem(atPath: directory.string) }
    // More than the buffers of a socket take.
    let content = Data((0..<4 << 20).map { UInt8(truncatingIfNeeded: $0 &* 7 >> 3) })
    try content.write(to: URL(filePath: directory.appending("file").string))
    let server = try Server(
      root: Root(directory, caching: .automatic, lists: false, isPrecompressed: false),
      listeners: [Listener(.unix(path: directory.appending("socket")))], settings: Settings(),
      log: nil, logger: logger)
    let group = group(server)
    let running = Task { try await group.run() }
    // The socket is there; the answer begins when the server serves.
    let client = try connect(directory.appending("socket").string)
    defer { close(client) }
    let request = "GET /file HTTP/1.1\r\nHost: test\r\n\r\n"
    XCTAssertEqual(write(client, request, request.utf8.count), request.utf8.count)
    var answer = Data()
    XCTAssertGreaterThan(receive(client, 1, &answer), 0)
    await group.triggerGracefulShutdown()
    while receive(client, 1 << 16, &answer) > 0 {}
    XCTAssertEqual(answer.suffix(content.count), content)
    try await running.value
    XCTAssertThrowsError(try connect(directory.appending("socket").string))
  }

  func testTheStatusOfAServerThatFailsIsTheGroups() async throws {
    let group = group(Stub(status: 3))
    let running = Task { try await group.run() }
    await group.triggerGracefulShutdown()
    do {
      try await running.value
      XCTFail("the group ended well")
    } catch let failure as GracefulServerService.Failure {
      XCTAssertEqual(failure.status, 3)
    }
  }

  func testACancelledGroupShutsTheServerDown() async throws {
    let server = Stub(status: 0)
    let group = group(server)
    let running = Task { try await group.run() }
    running.cancel()
    _ = await running.result
    XCTAssertGreaterThan(server.reasons.withLock { $0.count }, 0)
  }

  // MARK: A client

  private func connect(_ path: String) throws -> Int32 {
    let client = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8) }
    let result = withUnsafePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        Glibc.connect(client, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
      }
    }
    guard result == 0 else {
      defer { close(client) }
      throw Errno(rawValue: errno)
    }
    return client
  }

  private func receive(_ client: Int32, _ count: Int, _ bytes: inout Data) -> Int {
    var buffer = [UInt8](repeating: 0, count: count)
    let received = read(client, &buffer, count)
    bytes += buffer.prefix(max(received, 0))
    return received
  }
}
#endif

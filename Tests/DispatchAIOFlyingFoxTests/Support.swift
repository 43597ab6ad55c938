// SPDX-License-Identifier: Apache-2.0

#if FlyingFox
import DispatchAIOFlyingFox
import FlyingFox
import FlyingSocks
import Foundation
import XCTest

/// A directory on a real file system, removed with the value.
final class Folder: Sendable {
  let path: String

  init() throws {
    let parent = ProcessInfo.processInfo.environment["TMPDIR"] ?? "/var/tmp"
    path = "\(parent)/dispatch-aio-\(UUID().uuidString)"
    try FileManager.default.createDirectory(
      atPath: "\(path)/sub", withIntermediateDirectories: true)
  }

  deinit { try? FileManager.default.removeItem(atPath: path) }

  /// Makes a file whose bytes are all different from their neighbours.
  @discardableResult
  func makeFile(_ name: String, size: Int) throws -> Data {
    // Repeated after an odd number of bytes, so that no chunk is like another.
    let piece = Data((0..<65_537).map { UInt8(truncatingIfNeeded: $0 &* 31 &+ $0 >> 8) })
    var data = Data(capacity: size)
    while data.count < size { data.append(piece.prefix(size - data.count)) }
    try data.write(to: URL(fileURLWithPath: "\(path)/\(name)"))
    return data
  }

  /// Drops a file's pages from the page cache.
  func evict(_ name: String) throws {
    let file = open("\(path)/\(name)", O_RDONLY)
    guard file >= 0, fsync(file) == 0, posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED) == 0 else {
      throw SocketError.makeFailed("evict")
    }
    close(file)
  }
}

/// A running server.
final class RunningServer {
  let port: UInt16
  private let server: HTTPServer
  private let task: Task<Void, any Error>

  init(pool: some AsyncSocketPool, handler: any HTTPHandler) async throws {
    let server = HTTPServer(
      address: try .inet(ip4: "127.0.0.1", port: 0), pool: pool, logger: .disabled,
      handler: handler)
    task = Task { try await server.run() }
    self.server = server
    try await server.waitUntilListening(timeout: 30)
    guard case .ip4(_, let port) = await server.listeningAddress else {
      throw SocketError.unsupportedAddress
    }
    self.port = port
  }

  /// Ends the server, and waits for its end.
  func stop() async {
    await server.stop(timeout: 5)
    task.cancel()
    _ = await task.result
  }
}

/// Runs curl, which is what a server's user has.
func curl(_ arguments: String...) throws -> (status: Int32, output: Data) {
  let process = Process()
  let output = Pipe()
  process.executableURL = URL(fileURLWithPath: "/usr/bin/curl")
  process.arguments = ["--silent", "--show-error", "--max-time", "60"] + arguments
  process.standardOutput = output
  try process.run()
  let data = try output.fileHandleForReading.readToEnd() ?? Data()
  process.waitUntilExit()
  return (process.terminationStatus, data)
}

/// Asserts that an asynchronous call throws, and gives the error to `check`.
func assertThrows<Value>(
  file: StaticString = #filePath, line: UInt = #line,
  _ body: () async throws -> Value, _ check: (any Error) -> Void
) async {
  do {
    _ = try await body()
    XCTFail("nothing was thrown", file: file, line: line)
  } catch {
    check(error)
  }
}
#endif

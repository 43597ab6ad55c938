// SPDX-License-Identifier: Apache-2.0
//
// FlyingFox's own socket pool beside that of DispatchAIOFlyingFox, without HTTP: bytes that go to
// and fro over pairs of sockets, each of which waits for the other.

import ArgumentParser
import Foundation

#if FlyingFox
import DispatchAIO
import DispatchAIOFlyingFox
import FlyingFox
import FlyingSocks
#endif

struct FlyingFoxPools: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "flyingfox-pools", abstract: "Compare FlyingFox's socket pool with the plug's.",
    shouldDisplay: false)

  @Option(help: ArgumentHelp("How many pairs of sockets at once.", valueName: "list"))
  var pairs = Depths([1, 32])

  @Option(help: "How many waits each time, of all sockets.")
  var waits = 30_000

  @Option(help: "How often to run each.")
  var rounds = 5

  func run() throws {
    #if FlyingFox
    let this = self
    runTask { try await this.compare() }
    #else
    throw BenchError("aio-bench was built without FlyingFox: build it with --traits FlyingFox")
    #endif
  }

  #if FlyingFox
  private struct Result {
    var rate: Double
    /// The processor time of the process for each wait, in microseconds.
    var processorTime: Double
  }

  private func compare() async throws {
    print("pairs  epoll: waits/s, cpu us  aio: waits/s, cpu us  ratio: rate, cpu")
    for pairs in pairs.values {
      var (epoll, aio): ([Result], [Result]) = ([], [])
      for round in 1...rounds {
        for isOwn in round % 2 == 0 ? [true, false] : [false, true] {
          if isOwn {
            aio.append(try await measure(AIOSocketPool(try AIOContext()), pairs))
          } else {
            epoll.append(try await measure(HTTPServer.defaultPool(), pairs))
          }
        }
      }
      func text(_ results: [Result]) -> String {
        "\(median(results.map(\.rate)).rate), \(median(results.map(\.processorTime)).text(1))"
      }
      let rate = median(zip(aio, epoll).map { $0.rate / $1.rate })
      let processor = median(zip(aio, epoll).map { $0.processorTime / $1.processorTime })
      print(
        "\(pairs)  \(text(epoll))  \(text(aio))  \(rate.text(2)), \(processor.text(2))")
    }
  }

  private func measure(_ pool: some AsyncSocketPool, _ pairs: Int) async throws -> Result {
    try await pool.prepare()
    let run = Task { try await pool.run() }
    defer { run.cancel() }
    let each = max(1, waits / pairs / 2)
    let (began, processor) = (ContinuousClock.now, Double(clock()))
    try await withThrowingTaskGroup(of: Void.self) { group in
      for _ in 0..<pairs {
        let (a, b) = try Self.pair(pool)
        group.addTask {
          for _ in 0..<each {
            try await a.write(Data([1]))
            _ = try await a.read()
          }
          try a.close()
        }
        group.addTask {
          for _ in 0..<each { try await b.write(Data([try await b.read()])) }
          try b.close()
        }
      }
      try await group.waitForAll()
    }
    let count = Double(each * pairs * 2)
    return Result(
      rate: count / ((ContinuousClock.now - began) / .seconds(1)),
      processorTime: (Double(clock()) - processor) / count)
  }

  private static func pair(_ pool: some AsyncSocketPool) throws -> (AsyncSocket, AsyncSocket) {
    var descriptors: [Int32] = [0, 0]
    guard socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &descriptors) == 0 else {
      throw BenchError("socketpair: \(String(cString: strerror(errno)))")
    }
    return (
      try AsyncSocket(socket: Socket(file: .init(rawValue: descriptors[0])), pool: pool),
      try AsyncSocket(socket: Socket(file: .init(rawValue: descriptors[1])), pool: pool)
    )
  }
  #endif
}

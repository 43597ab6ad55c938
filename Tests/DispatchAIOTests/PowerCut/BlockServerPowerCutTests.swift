// SPDX-License-Identifier: Apache-2.0

import Foundation
import SystemPackage
import XCTest

@testable import BlockServer

/// aio-nbd: what was written before a FLUSH, on whichever connection, or with FUA, is there after a
/// power failure.
final class BlockServerPowerCutTests: XCTestCase {
  func testOnExt4() async throws { try await assertNothingIsLost(BlockWorkload(), on: "ext4") }
  func testOnXFS() async throws { try await assertNothingIsLost(BlockWorkload(), on: "xfs") }
  func testOnBtrfs() async throws { try await assertNothingIsLost(BlockWorkload(), on: "btrfs") }

  /// What was not flushed.
  func testWithoutFlush() async throws {
    try await assertSomethingIsLost(BlockWorkload(flushes: false), on: "ext4")
  }
}

/// Clients that write, with others' writes under way, to places of an image that share its blocks.
private final class BlockWorkload: PowerCutWorkload {
  /// A write of a place, by its number among those of that place.
  struct Write {
    var place: Int
    var number: Int
  }

  private static let clients = 3
  /// Of each client.
  private static let places = 150
  /// No multiple of a block or sector.
  private static let size = 3000
  private static let imageSize = clients * places * size

  /// What is shared by the clients.
  private struct State {
    /// What was written to each place, one after the other; at first, zeros.
    var contents: [[ArraySlice<UInt8>]]
    /// The write of each place that was answered last.
    var answered: [Int]
  }

  let name: String
  private let flushes: Bool
  private var durable: Acknowledgements<[Write]>?
  private let state: Locked<State>
  private let sockets: TemporaryDirectory

  init(flushes: Bool = true) throws {
    name = flushes ? "aio-nbd, flushed" : "aio-nbd, not flushed"
    self.flushes = flushes
    sockets = try TemporaryDirectory()
    let count = Self.clients * Self.places
    state = Locked(
      State(
        contents: Array(repeating: [Self.zeros], count: count),
        answered: Array(repeating: 0, count: count)))
  }

  private static let zeros = [UInt8](repeating: 0, count: size)[...]

  func run(in path: FilePath, on disk: PowerCutDisk, random: inout SeededGenerator) throws {
    let durable = self.durable ?? Acknowledgements(disk)
    self.durable = durable
    let image = path.appending("image")
    let promised = oldest(durable.promised(at: 0))
    if promised == nil {
      try make(image)
      try synchronize(path)
    }
    // Of what was answered before a power failure, only this is known to be there.
    state.withLock { $0.answered = promised ?? Array(repeating: 0, count: $0.contents.count) }
    let server = try NBDServer(sockets, ["disk=\(image.string)"], ["--loops", "2"])
    durable.record([])
    let (seed, flushes, state) = (random.next(), flushes, state)
    onThreads(Self.clients) { number in
      do {
        var client = try Client(
          server, state, durable, flushes: flushes, places: number * Self.places,
          random: SeededGenerator(seed: seed &+ UInt64(number)))
        for _ in 0..<60 { try client.step() }
      } catch {
        XCTFail("client \(number): \(error)")
      }
    }
    server.kill()
  }

  /// Makes an image that is a hole, so that blocks have to be allocated.
  private func make(_ image: FilePath) throws {
    guard FileManager.default.createFile(atPath: image.string, contents: nil),
      truncate(image.string, Self.imageSize) == 0
    else { throw Errno(rawValue: errno) }
    try synchronize(image)
  }

  /// The oldest write of each place that may be there; `nil`: there may be no image.
  private func oldest(_ promised: [[Write]]) -> [Int]? {
    if promised.isEmpty { return nil }
    var oldest = [Int](repeating: 0, count: Self.clients * Self.places)
    for write in promised.joined() {
      oldest[write.place] = max(oldest[write.place], write.number)
    }
    return oldest
  }

  /// One connection.
  private struct Client {
    let client: NBDClient
    let state: Locked<State>
    let durable: Acknowledgements<[Write]>
    let flushes: Bool
    let first: Int
    var random: SeededGenerator

    init(
      _ server: NBDServer, _ state: Locked<State>, _ durable: Acknowledgements<[Write]>,
      flushes: Bool, places first: Int, random: SeededGenerator
    ) throws {
      client = try NBDClient(server)
      (self.state, self.durable, self.flushes) = (state, durable, flushes)
      (self.first, self.random) = (first, random)
    }

    /// Some writes at once, and perhaps a flush.
    mutating func step() throws {
      var waiting: [UInt64: (write: Write, isDurable: Bool)] = [:]
      var places: Set<Int> = []
      while places.count < 4 {
        places.insert(first + Int.random(in: 0..<BlockWorkload.places, using: &random))
      }
      for place in places.sorted() {
        let isDurable = random.oneIn(4)
        let (write, cookie) = try ask(place, isDurable)
        waiting[cookie] = (write, isDurable)
      }
      while !waiting.isEmpty {
        let reply = try client.reply()
        guard reply.error == 0, let (write, isDurable) = waiting.removeValue(forKey: reply.cookie)
        else { throw Errno(rawValue: Int32(reply.error)) }
        state.withLock { $0.answered[write.place] = write.number }
        if isDurable || !flushes { durable.record([write]) }
      }
      if flushes, random.oneIn(2) { try flush() }
    }

    private mutating func ask(_ place: Int, _ isDurable: Bool) throws -> (Write, UInt64) {
      let isZeros = random.oneIn(6)
      let contents =
        isZeros ? BlockWorkload.zeros : .random(count: BlockWorkload.size, &random)
      let number = state.withLock {
        $0.contents[place].append(contents)
        return $0.contents[place].count - 1
      }
      let cookie = try client.ask(
        isZeros ? .writeZeroes : .write, flags: isDurable ? .fua : [],
        at: place * BlockWorkload.size, count: BlockWorkload.size,
        payload: isZeros ? [] : [UInt8](contents))
      return (Write(place: place, number: number), cookie)
    }

    /// Covers what all clients had an answer to when it was asked for.
    private func flush() throws {
      let answered = state.withLock { $0.answered }
      guard try client.call(.flush).error == 0 else { throw Errno.ioError }
      durable.record(answered.enumerated().map { Write(place: $0.offset, number: $0.element) })
    }
  }

  func losses(in path: FilePath, after cut: PowerCutDisk.Cut) throws -> [String] {
    guard let oldest = oldest(durable?.promised(at: cut.position) ?? []) else { return [] }
    let state = state.withLock { $0 }
    let server = try NBDServer(sockets, ["disk=\(path.appending("image").string)"])
    let client = try NBDClient(server)
    let bytes = try client.read(0..<Self.imageSize)
    let losses = state.contents.indices.compactMap { place -> String? in
      let isThere = Self.has(bytes, place, anyOf: state.contents[place][oldest[place]...])
      return isThere ? nil : "write \(oldest[place]) of place \(place) is not there"
    }
    try client.write([UInt8](Self.zeros), at: 1)
    guard try client.call(.flush).error == 0, server.stop() == 0 else {
      return losses + ["it cannot be written any more: \(server.logged)"]
    }
    return losses
  }

  /// Whether each sector's part of a place is of one of the writes; a later one may have been torn.
  private static func has(
    _ bytes: [UInt8], _ place: Int, anyOf writes: ArraySlice<ArraySlice<UInt8>>
  ) -> Bool {
    let range = place * size..<(place + 1) * size
    var start = range.lowerBound
    while start < range.upperBound {
      let end = min(range.upperBound, (start / 512 + 1) * 512)
      let isThere = writes.contains { write in
        write.dropFirst(start - range.lowerBound).prefix(end - start)
          .isSame(as: bytes[start..<end])
      }
      if !isThere { return false }
      start = end
    }
    return true
  }
}

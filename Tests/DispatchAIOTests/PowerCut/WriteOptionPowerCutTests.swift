// SPDX-License-Identifier: Apache-2.0

import DispatchAIO
import Foundation
import SystemPackage
import XCTest

/// What the options of a write promise of a power failure: `.atomic` that it has been made in full
/// or not at all, `.dataSync` that it is there once it has completed.
final class WriteOptionPowerCutTests: XCTestCase {
  /// XFS has untorn writes on any disk, since Linux 6.16.
  func testUntornOnXFS() async throws {
    try await assertNothingIsLost(OptionWorkload("untorn writes", .atomic), on: "xfs")
  }

  func testUntornAndDurableOnXFS() async throws {
    try await assertNothingIsLost(
      OptionWorkload("untorn and durable writes", [.atomic, .dataSync]), on: "xfs")
  }

  func testDurableOnExt4() async throws {
    try await assertNothingIsLost(OptionWorkload("durable writes", .dataSync), on: "ext4")
  }

  func testWithoutAtomic() async throws {
    try await assertSomethingIsLost(
      OptionWorkload("writes that may be torn", [], instead: .atomic), on: "xfs")
  }

  func testWithoutDataSync() async throws {
    try await assertSomethingIsLost(
      OptionWorkload("writes that are not durable", [], instead: .dataSync), on: "ext4")
  }
}

/// Pages of a file that are written over and over, several at a time, each time with another number
/// all through it.
private final class OptionWorkload: PowerCutWorkload {
  private static let pageSize = 32 << 10
  private static let pages = 48

  let name: String
  private let options: AIOWriteOptions
  /// The options whose promises are looked at.
  private let promise: AIOWriteOptions
  /// The numbers of all pages, when they were durable.
  private var durable: Acknowledgements<[UInt32]>?
  private var number: UInt32 = 0

  /// - Parameter promise: the options whose promises are to be looked for, if it is not `options`.
  init(
    _ name: String, _ options: AIOWriteOptions, instead promise: AIOWriteOptions? = nil
  ) {
    (self.name, self.options) = (name, options)
    self.promise = promise ?? options
  }

  func run(in path: FilePath, on disk: PowerCutDisk, random: inout SeededGenerator) async throws {
    let durable = self.durable ?? Acknowledgements(disk)
    self.durable = durable
    let file = try await AIOFile.open(path.appending("pages"), .readWrite, options: .create)
    if options.contains(.atomic), file.atomicWriteUnit?.contains(Self.pageSize) != true {
      throw XCTSkip("the file system has no untorn writes of \(Self.pageSize) bytes")
    }
    let context = try AIOContext(queueDepth: 8)
    // All of them, as a page may be torn since the last power failure.
    var numbers = [UInt32](repeating: 0, count: Self.pages)
    try await write(Array(0..<Self.pages), &numbers, file, context)
    try await context.fsync(file)
    try synchronize(path)
    durable.record(numbers)
    for _ in 0..<40 {
      let places = (0..<Self.pages).shuffled(using: &random).prefix(6)
      try await write(Array(places), &numbers, file, context)
      if promise.contains(.dataSync) {
        durable.record(numbers)
      } else if random.oneIn(3) {
        try await context.fdatasync(file)
        durable.record(numbers)
      }
    }
    await context.close()
  }

  /// Writes pages, all at once.
  private func write(
    _ places: [Int], _ numbers: inout [UInt32], _ file: AIOFile, _ context: AIOContext
  ) async throws {
    try await withThrowingTaskGroup(of: Void.self) { group in
      for place in places {
        number += 1
        numbers[place] = number
        group.addTask { [number, options] in
          var page = AIOUniqueBuffer(count: Self.pageSize)
          page.withUnsafeMutableBytes {
            for index in $0.bindMemory(to: UInt32.self).indices {
              $0.storeBytes(of: number, toByteOffset: 4 * index, as: UInt32.self)
            }
          }
          let count = try await context.write(
            file, at: Int64(place * Self.pageSize), from: page, options: options)
          XCTAssertEqual(count, Self.pageSize)
        }
      }
      try await group.waitForAll()
    }
  }

  func losses(in path: FilePath, after cut: PowerCutDisk.Cut) throws -> [String] {
    guard let promised = durable?.promised(at: cut.position).last else { return [] }
    let file = path.appending("pages").string
    let bytes = [UInt8](try Data(contentsOf: URL(fileURLWithPath: file)))
    return promised.enumerated().compactMap { place, promised in
      let page = bytes[place * Self.pageSize..<(place + 1) * Self.pageSize]
      let numbers = page.withUnsafeBytes { Set($0.bindMemory(to: UInt32.self)) }
      if promise.contains(.atomic), numbers.count > 1 {
        return "page \(place) is torn: it has \(numbers.sorted())"
      }
      // What was being written at the failure may be there in part.
      return numbers.allSatisfy { promised...number ~= $0 }
        ? nil : "page \(place) has \(numbers.sorted()), and \(promised) was durable"
    }
  }
}

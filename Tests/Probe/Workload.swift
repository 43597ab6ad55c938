// SPDX-License-Identifier: Apache-2.0

import Dispatch
import DispatchAIO
import Foundation
import SystemPackage

/// Reads and writes files at random for a while, many requests at once, and checks that each
/// completes once, and that what is read is what was written: one file direct and one buffered,
/// from 1 to 32 units, in one buffer or several, with syncs between. Requests may fail when
/// somebody makes the kernel refuse them; what they would have written is unknown then.
///
/// - Safety: `@unchecked Sendable` because it is confined to the context's queue once it runs.
final class Workload: @unchecked Sendable {
  /// A part of a file that one request at a time works on.
  private final class Region {
    let file: AIOFile
    let start: Int64
    let unit: Int
    /// What each unit was last written with; `nil` while that is unknown.
    var contents: [UInt8?]
    var isBusy = false

    init(_ file: AIOFile, start: Int64, unit: Int, units: Int) {
      (self.file, self.start, self.unit) = (file, start, unit)
      contents = Array(repeating: nil, count: units)
    }
  }

  private let context: AIOContext
  private let regions: [Region]
  private let total: Int?
  private let end: Date?
  private var random = SystemRandomNumberGenerator()
  private let done = DispatchSemaphore(value: 0)

  private var started = 0
  private var inFlight = 0
  private(set) var succeeded = 0
  private(set) var failed: [String: Int] = [:]
  private(set) var wrong = 0
  private(set) var bytes = 0

  /// - Parameters:
  ///   - total: how many requests; or
  ///   - seconds: for how long.
  init(in directory: FilePath, requests total: Int?, seconds: Double?) throws {
    context = try AIOContext(queueDepth: 8, pendingLimit: 128)
    var regions: [Region] = []
    for caching in [AIOFile.Caching.direct, .buffered] {
      let file = try AIOFile.open(
        directory.appending(caching == .direct ? "probe" : "probe.buffered"), .readWrite,
        options: .create, caching: caching)
      // No multiple of anything, where nothing has to be aligned.
      let unit = file.alignment.offset > 1 ? file.alignment.offset : 700
      for region in 0..<32 {
        regions.append(
          Region(file, start: Int64(region * unit * 32), unit: unit, units: 32))
      }
    }
    self.regions = regions
    self.total = total
    end = seconds.map { Date().addingTimeInterval($0) }
  }

  /// - Returns: whether all of it completed.
  func run(deadline: Double) -> Bool {
    context.queue.async { for _ in 0..<24 { self.step() } }
    guard done.wait(timeout: .now() + deadline) == .success else { return false }
    let closed = DispatchSemaphore(value: 0)
    context.close { closed.signal() }
    closed.wait()
    return true
  }

  var statistics: AIOStatistics { context.statistics }

  private var isOver: Bool {
    total.map { started >= $0 } ?? false || end.map { Date() >= $0 } ?? false
  }

  private func step() {
    if isOver {
      if inFlight == 0 { done.signal() }
      return
    }
    guard let region = regions.randomElement(using: &random), !region.isBusy else {
      return context.queue.async { self.step() }
    }
    started += 1
    inFlight += 1
    region.isBusy = true
    let first = Int.random(in: 0..<region.contents.count, using: &random)
    let range = first..<Int.random(in: (first + 1)...region.contents.count, using: &random)
    let isKnown = region.contents[range].allSatisfy { $0 != nil }
    let isWrite = !isKnown || Bool.random(using: &random)
    do {
      if isWrite { try write(region, range) } else { try read(region, range) }
      if started % 16 == 0 { try context.fdatasync(region.file) { _ in } }
      if started % 61 == 0 { try context.fsync(region.file) { _ in } }
    } catch {
      fatalError("\(error)")
    }
  }

  private func write(_ region: Region, _ range: Range<Int>) throws {
    let values = range.map { _ in UInt8.random(in: 1...255, using: &random) }
    let buffer = AIOBuffer(count: range.count * region.unit)
    buffer.withUnsafeMutableBytes { bytes in
      for (index, value) in values.enumerated() {
        let unit = UnsafeMutableRawBufferPointer(
          rebasing: bytes[index * region.unit..<(index + 1) * region.unit])
        _ = unit.initializeMemory(as: UInt8.self, repeating: value)
      }
    }
    for index in range { region.contents[index] = nil }
    let offset = region.start + Int64(range.lowerBound * region.unit)
    let completion = once { [self] result in
      if case .success(let count) = result {
        // A plain write may be cut short.
        for index in 0..<count / region.unit {
          region.contents[range.lowerBound + index] = values[index]
        }
      }
      finished(region, result)
    }
    switch Int.random(in: 0..<4, using: &random) {
    case 0: try context.write(region.file, at: offset, from: buffer, completion: completion)
    case 1: try context.write(region.file, at: offset, from: buffer, completion: completion)
    case 2:
      try context.write(
        region.file, at: offset, from: pieces(buffer, region), completion: completion)
    default:
      try context.write(
        region.file, at: offset, from: pieces(buffer, region), completion: completion)
    }
  }

  private func read(_ region: Region, _ range: Range<Int>) throws {
    let buffer = AIOBuffer(count: range.count * region.unit)
    let offset = region.start + Int64(range.lowerBound * region.unit)
    let completion = once { [self] result in
      if case .success(let count) = result {
        let isRight = buffer.withUnsafeBytes { bytes in
          (0..<count).allSatisfy {
            bytes[$0] == region.contents[range.lowerBound + $0 / region.unit]
          }
        }
        // All of it has been written, so that there is no end of file in between.
        if count != buffer.count || !isRight { wrong += 1 }
      }
      finished(region, result)
    }
    if Bool.random(using: &random) {
      try context.read(region.file, at: offset, into: buffer, completion: completion)
    } else {
      try context.read(
        region.file, at: offset, into: pieces(buffer, region), completion: completion)
    }
  }

  /// A buffer in up to five slices.
  private func pieces(_ buffer: AIOBuffer, _ region: Region) -> [AIOBuffer] {
    let units = buffer.count / region.unit
    let cuts = (0..<4).map { _ in Int.random(in: 0...units, using: &random) * region.unit }.sorted()
    return zip([0] + cuts, cuts + [buffer.count]).map { buffer[$0..<$1] }
  }

  private func once(_ body: @escaping (Result<Int, AIOError>) -> Void) -> AIOCompletion {
    nonisolated(unsafe) var completions = 0  // on the context's queue
    nonisolated(unsafe) let body = body  // likewise
    return { result in
      completions += 1
      if completions > 1 { fatalError("completed \(completions) times") }
      body(result)
    }
  }

  private func finished(_ region: Region, _ result: Result<Int, AIOError>) {
    region.isBusy = false
    inFlight -= 1
    switch result {
    case .success(let count):
      succeeded += 1
      bytes += count
    case .failure(let error):
      failed[error.errno.map { "\($0.rawValue)" } ?? error.code.description, default: 0] += 1
    }
    step()
  }
}

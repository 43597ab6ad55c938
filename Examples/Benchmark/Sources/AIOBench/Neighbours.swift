// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import CEngines
import Dispatch
import DispatchAIO
import Foundation
import SystemPackage

struct Neighbours: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Does a slow file hold up the others?",
    discussion: """
      Random reads of many files on one context; in turn alone, and beside a slow file (on a FUSE \
      or loop device that is throttled, say) that is read and appended to without pause. Told is \
      how many reads per second of the others there were.
      """)

  @Option(help: ArgumentHelp("Where to make the files, and remove them.", valueName: "directory"))
  var directory: String

  @Option(
    help: ArgumentHelp(
      "A file on a slow filesystem; made, and filled, if it is missing; cut to 4 MiB for each run.",
      valueName: "path"))
  var slow: String

  @Option(help: "How many files to read.")
  var files = 50

  @Option(help: "How many reads of them to keep in flight.")
  var iodepth = 32

  @Option(help: "How many requests on the slow file to keep in flight.")
  var slowDepth = 8

  @Option(help: ArgumentHelp("For how long, each run.", valueName: "seconds"))
  var runtime = 5.0

  @Option(help: "How often to run each.")
  var rounds = 3

  @Flag(help: "The slow file goes through the page cache.")
  var slowBuffered = false

  private static let fileSize = 4 << 20

  func validate() throws {
    try require("files", files, 1...10_000)
    try require("iodepth", iodepth, 1...4096)
    try require("slow-depth", slowDepth, 1...4096)
    try require("rounds", rounds, 1...1000)
    try require("runtime", runtime, 0.001...86400)
  }

  func run() throws {
    let fileSize = Self.fileSize
    let paths = (0..<files).map { "\(directory)/neighbour-\($0)" }
    defer { for path in paths { unlink(path) } }
    for (index, path) in paths.enumerated() {
      ProgressLine.show("making files: \(index)")
      try job(path, fileSize).prepareFile(fill: true) { _ in }
    }
    try job(slow, fileSize).prepareFile(fill: false) {
      ProgressLine.show("slow file: \(Int($0 * 100)) %")
    }
    var results: [(alone: Loop.Result, beside: Loop.Result)] = []
    for round in 1...rounds {
      ProgressLine.show("round \(round) of \(rounds)")
      results.append(
        (
          try Loop(self, paths, slow: nil).run(),
          try Loop(self, paths, slow: slow).run()
        ))
    }
    ProgressLine.clear()
    print(
      """
      \(files) files, \(iodepth) reads of 4 KiB in flight; slow file: \(slowDepth) in flight, \
      \(slowBuffered ? "buffered" : "direct"); medians of \(rounds) rounds
        alone:  \(median(results.map { Double($0.alone.reads) / $0.alone.seconds }).rate) reads/s
        beside: \(median(results.map { Double($0.beside.reads) / $0.beside.seconds }).rate) reads/s, \
      and \(median(results.map { Double($0.beside.slow) / $0.beside.seconds }).text(1)) requests/s on the slow file
        ratio:  \(median(results.map { Double($0.beside.reads) / $0.beside.seconds / (Double($0.alone.reads) / $0.alone.seconds) }).text(3))
      """)
  }

  private func job(_ path: String, _ size: Int) -> Job {
    Job(
      pattern: .randread, blockSize: 4096, depth: 1, file: path, size: size, runtime: 1,
      isDirect: true, fdatasyncEvery: 0, verifies: false)
  }

  /// - Safety: `@unchecked Sendable` because it is confined to its context's queue.
  private final class Loop: @unchecked Sendable {
    struct Result {
      var reads: Int
      var slow: Int
      var seconds: Double
    }

    private let settings: Neighbours
    private let context: AIOContext
    private let files: [AIOFile]
    private let slow: AIOFile?
    private let done = DispatchSemaphore(value: 0)
    private var random = SystemRandomNumberGenerator()
    private var deadline: UInt64 = 0
    private var inFlight = 0
    private var reads = 0
    private var slowRequests = 0
    private var slowBegun = 0
    private var end = Int64(fileSize)
    private var ended: UInt64 = 0
    private var failure: (any Error)?

    init(_ settings: Neighbours, _ paths: [String], slow: String?) throws {
      self.settings = settings
      context = try AIOContext(queueDepth: settings.iodepth + 2 * settings.slowDepth)
      files = try paths.map { try AIOFile.open(FilePath($0), .readOnly) }
      self.slow = try slow.map {
        try AIOFile.open(
          FilePath($0), .readWrite, caching: settings.slowBuffered ? .buffered : .direct)
      }
      try self.slow?.truncate(to: end)
      if settings.slowBuffered, let descriptor = self.slow?.fileDescriptor.rawValue {
        posix_fadvise(descriptor, 0, 0, POSIX_FADV_RANDOM)
        posix_fadvise(descriptor, 0, 0, POSIX_FADV_DONTNEED)
      }
    }

    func run() throws -> Result {
      let began = cengines_now()
      context.queue.async { [self] in
        deadline = cengines_now() + UInt64(settings.runtime * 1e9)
        for _ in 0..<settings.iodepth { read(AIOBuffer(count: 4096)) }
        if slow != nil {
          for _ in 0..<settings.slowDepth { slowly(AIOBuffer(count: 4096)) }
        }
      }
      done.wait()
      let closed = DispatchSemaphore(value: 0)
      context.close { closed.signal() }
      closed.wait()
      if let failure { throw failure }
      return Result(reads: reads, slow: slowRequests, seconds: Double(ended - began) / 1e9)
    }

    private func read(_ buffer: AIOBuffer) {
      inFlight += 1
      let file = files.randomElement(using: &random)!
      request { completion in
        try context.read(
          file, at: Int64.random(in: 0..<1024, using: &random) * 4096, into: buffer,
          completion: completion)
      } then: { [self] in
        reads += 1
        let now = cengines_now()
        if now < deadline { read(buffer) } else { ended = now }
      }
    }

    /// Reads, and every fourth an append.
    private func slowly(_ buffer: AIOBuffer) {
      guard let slow else { return }
      inFlight += 1
      slowBegun += 1
      let place = Int64.random(in: 0..<1024, using: &random) * 4096
      request { completion in
        if slowBegun % 4 == 0 {
          defer { end += 4096 }
          return try context.write(slow, at: end, from: buffer, completion: completion)
        } else {
          return try context.read(slow, at: place, into: buffer, completion: completion)
        }
      } then: { [self] in
        slowRequests += 1
        if cengines_now() < deadline { slowly(buffer) }
      }
    }

    private func request(
      _ body: (@escaping AIOCompletion) throws -> AIORequest, then next: @escaping () -> Void
    ) {
      nonisolated(unsafe) let next = next  // on the queue, as all of this
      do {
        _ = try body { [self] result in
          if case .failure(let error) = result { failure = error }
          inFlight -= 1
          if failure == nil { next() }
          if inFlight == 0 { done.signal() }
        }
      } catch {
        failure = error
        inFlight -= 1
        if inFlight == 0 { done.signal() }
      }
    }
  }
}

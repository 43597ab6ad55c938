// SPDX-License-Identifier: Apache-2.0

import Foundation
import SystemPackage
import XCTest

/// Something that writes to a disk, and knows afterwards what it was promised.
protocol PowerCutWorkload: AnyObject {
  /// What promises.
  var name: String { get }

  /// Writes in `path`, the mounted disk, and remembers what was acknowledged, and when. It is
  /// called again on what a power failure has left.
  func run(in path: FilePath, on disk: PowerCutDisk, random: inout SeededGenerator) async throws

  /// What of that which had been acknowledged before a cut is not there, and what does not work, in
  /// words. An error is a loss, too.
  func losses(in path: FilePath, after cut: PowerCutDisk.Cut) async throws -> [String]
}

/// The power fails at random moments while a program writes.
///
/// - `AIO_POWER_CUTS=n`: how many cuts all tests together make, about; 100.
/// - `AIO_SEED=n`: the same requests, and the same share of them before each cut. (What the
///   filesystem writes of its own accord, and when, is different each time.)
/// - `AIO_POWER_CUT_KEEP=DIR`: where to keep the disk's image after a loss.
struct PowerCuts {
  /// The tests that share the cuts: four programs and a type, on three filesystems, and the options
  /// of writes.
  private static let tests = 18

  /// How many cuts a test makes.
  static var count: Int {
    let all = ProcessInfo.processInfo.environment["AIO_POWER_CUTS"].flatMap(Int.init) ?? 100
    return max(1, (all + tests - 1) / tests)
  }

  private let workload: any PowerCutWorkload
  private let disk: PowerCutDisk
  private var random: SeededGenerator
  /// The log's length when the disk had been mounted, and when the workload had ended.
  private var log = 0...0
  private var flushes: [Bool] = []
  /// In all logs.
  private var (writeCount, flushCount) = (0, 0)

  /// Lets a workload run on a new disk.
  init(
    _ workload: any PowerCutWorkload, type: String, in directory: TemporaryDirectory, seed: UInt64
  ) async throws {
    self.workload = workload
    random = SeededGenerator(seed: seed)
    disk = try PowerCutDisk(in: directory, type: type)
    try await run()
  }

  /// The power fails, and the workload runs again on what that left. What it was promised before
  /// the failure goes on to be promised.
  mutating func restart() async throws {
    try disk.restart(after: randomCut())
    try await run()
  }

  private mutating func run() async throws {
    let mount = try disk.mount()
    let first = disk.position
    try await workload.run(in: mount.path, on: disk, random: &random)
    log = first...disk.position
    withExtendedLifetime(mount) {}
    flushes = try disk.flushes()
    let count = flushes[log.lowerBound..<log.upperBound].count { $0 }
    flushCount += count
    writeCount += log.count - 1 - count
  }

  /// Some moment: half of them just before a flush, or just after it.
  private mutating func randomCut() -> PowerCutDisk.Cut {
    var position = Int.random(in: log, using: &random)
    let isAtFlush = Bool.random(using: &random)
    let isAfterIt = Bool.random(using: &random)
    if isAtFlush, let flush = flushes[position..<log.upperBound].firstIndex(of: true) {
      position = isAfterIt ? flush + 1 : flush
    }
    return .init(position: position, seed: random.next())
  }

  /// Cuts the power once.
  ///
  /// - Returns: what was lost.
  mutating func cut() async throws -> [String] {
    let cut = randomCut()
    var losses: [String]
    do {
      let mount = try disk.mount(cut)
      losses = try await workload.losses(in: mount.path, after: cut)
      withExtendedLifetime(mount) {}
    } catch let skip as XCTSkip {
      throw skip
    } catch {
      losses = ["\(error)"]
    }
    if !losses.isEmpty { try keep(cut) }
    return losses.map { "\(workload.name) on \(disk.type), \(cut): \($0)" }
  }

  private func keep(_ cut: PowerCutDisk.Cut) throws {
    guard let kept = ProcessInfo.processInfo.environment["AIO_POWER_CUT_KEEP"] else { return }
    let name = "\(disk.type)-\(cut.position)-\(cut.seed)"
    // What was done to the image after the failure is undone by asking for another one before.
    _ = access(disk.image(.init(position: 0, seed: 0)).string, F_OK)
    _ = try ChildProcess.run(
      "/bin/cp", ["--sparse=always", disk.image(cut).string, "\(kept)/\(name)"])
  }

  /// What was done, in words.
  var summary: String {
    "\(workload.name) on \(disk.type): \(writeCount) writes, \(flushCount) flushes"
  }
}

extension XCTestCase {
  /// Goal: nothing that was promised is lost. Method: as many cuts as are asked for; for half of
  /// them, the workload has run again after a cut.
  func assertNothingIsLost(_ workload: any PowerCutWorkload, on type: String) async throws {
    let directory = try temporaryDirectory()
    var cuts = try await PowerCuts(workload, type: type, in: directory, seed: Seeds.one)
    var lossyCuts = 0
    for number in 0..<PowerCuts.count {
      if number == PowerCuts.count / 2 { try await cuts.restart() }
      let losses = try await cuts.cut()
      if !losses.isEmpty { lossyCuts += 1 }
      // The first few say as much as all.
      for loss in losses.prefix(3) {
        XCTFail("\(loss) (of \(losses.count) losses); \(Seeds.replay(Seeds.one))")
      }
    }
    print("\(cuts.summary), \(PowerCuts.count) cuts, \(lossyCuts) with losses; seed \(Seeds.one)")
  }

  /// Goal: the test finds losses where nothing keeps them from happening.
  func assertSomethingIsLost(_ workload: any PowerCutWorkload, on type: String) async throws {
    let directory = try temporaryDirectory()
    var cuts = try await PowerCuts(workload, type: type, in: directory, seed: Seeds.one)
    // One of the first two or three finds some, nearly always.
    for number in 1...30 {
      let losses = try await cuts.cut()
      if let loss = losses.first {
        print("\(cuts.summary), lost at cut \(number), as it has to be: \(loss)")
        return
      }
    }
    XCTFail("\(cuts.summary): no loss; \(Seeds.replay(Seeds.one))")
  }
}

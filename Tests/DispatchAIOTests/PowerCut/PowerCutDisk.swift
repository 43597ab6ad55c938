// SPDX-License-Identifier: Apache-2.0

import Foundation
import SystemPackage
import XCTest

/// A disk whose every write and flush is logged, and what a power failure at any moment may leave
/// of it: `Tests/CFaultFS/CPowerCut.c` says what is durable and what is not. Skips the test where
/// there is no FUSE.
final class PowerCutDisk: Sendable {
  /// A moment at which the power fails: just before this entry of the log.
  struct Cut {
    var position: Int
    /// Of what is on the disk of that which was not durable.
    var seed: UInt64
  }

  /// The kind of its filesystem.
  let type: String
  private let directory: TemporaryDirectory
  private let served: ServedFileSystem
  private let positionFile: FileDescriptor
  /// The positions of the cuts after which it continued.
  private let earlierCuts = Locked<[Int]>([])

  /// - Parameter type: what to format the disk with; `nil`: it is all zeros.
  init(in directory: TemporaryDirectory, type: String?, megabytes: Int = 300) throws {
    self.directory = directory
    self.type = type ?? ""
    // The least that mkfs.xfs makes is 300 MiB; of a sparse file, where it has been written.
    let contents = directory.path.appending("disk.contents").string
    guard FileManager.default.createFile(atPath: contents, contents: nil),
      truncate(contents, megabytes << 20) == 0
    else { throw Errno(rawValue: errno) }
    if let type { try SmallDisk.format(contents, type: type) }
    served = try ServedFileSystem("power-cut-disk", named: "disk", in: directory)
    positionFile = try FileDescriptor.open(served["position"], .readOnly)
  }

  deinit { try? positionFile.close() }

  /// The disk itself.
  var path: FilePath { served["disk"] }

  /// The number of entries in the log.
  var position: Int {
    withUnsafeTemporaryAllocation(byteCount: 32, alignment: 1) { text in
      let count = (try? positionFile.read(fromAbsoluteOffset: 0, into: text)) ?? 0
      guard let position = Int(String(decoding: text[..<count], as: UTF8.self)) else {
        fatalError("the process of the disk has ended")
      }
      return position
    }
  }

  /// For each entry of the log whether it is a flush.
  func flushes() throws -> [Bool] {
    try Data(contentsOf: URL(fileURLWithPath: served["log"].string)).map { $0 == UInt8(ascii: "f") }
  }

  /// While `body` runs, no request of the disk is read.
  func paused(_ body: () throws -> Void) rethrows {
    served.signal(SIGSTOP)
    defer { served.signal(SIGCONT) }
    try body()
  }

  /// The power fails and is back: the disk, which is not mounted, continues with what it has then,
  /// and with an empty log.
  func restart(after cut: Cut) throws {
    guard rename(image(cut).string, path.string) == 0 else { throw Errno(rawValue: errno) }
    earlierCuts.withLock { $0.append(cut.position) }
  }

  /// A moment since the test began.
  struct Moment {
    /// How often the disk had continued after a cut.
    var restarts: Int
    /// The number of entries in the log.
    var position: Int
  }

  var now: Moment { Moment(restarts: earlierCuts.withLock { $0.count }, position: position) }

  /// Whether something that was acknowledged at a moment was acknowledged before a cut. (Those that
  /// came too late for an earlier cut are lost for good.)
  func isBefore(_ moment: Moment, _ cut: Int) -> Bool {
    earlierCuts.withLock { moment.position <= ($0 + [cut])[moment.restarts] }
  }

  /// What the disk has after a power failure. It is gone when the next one is asked for.
  func image(_ cut: Cut) -> FilePath { served["cut-\(cut.position)-\(cut.seed)"] }

  /// Mounts the disk; skips the test where its filesystem is unknown.
  func mount() throws -> Mount {
    do {
      return try mount(path)
    } catch Errno.operationNotSupportedByDevice {
      throw XCTSkip("the kernel has no \(type)")
    }
  }

  /// Mounts what the disk has after a power failure.
  func mount(_ cut: Cut) throws -> Mount { try mount(image(cut)) }

  private func mount(_ file: FilePath) throws -> Mount {
    let mount = try Mount(
      Self.device(file), at: directory.path.appending("disk.mounted"), type: type)
    // If this process is killed, the disk's unmounts it.
    mount.device.detachWhenUnused()
    return mount
  }

  /// A loop device over the disk, or over an image. It is direct, so that the requests of the
  /// filesystem arrive as they are; its flushes arrive as an fsync.
  static func device(_ file: FilePath) throws -> LoopDevice {
    try LoopDevice(over: file.string, options: ["--direct-io=on"])
  }
}

/// Makes a file durable, or the names in a directory.
func synchronize(_ path: FilePath) throws {
  let descriptor = try FileDescriptor.open(path, .readOnly)
  defer { try? descriptor.close() }
  guard fsync(descriptor.rawValue) == 0 else { throw Errno(rawValue: errno) }
}

/// What a program has acknowledged as durable, by the position of the disk's log.
///
/// The position is asked for when the acknowledgement has been received. The disk answers one
/// request at a time, so that with the answer `n` the entry number `n` had not been logged yet. A
/// cut at a position `p` is the moment before the entry number `p` was logged. If `n <= p`, that
/// moment was after the answer, and so after the acknowledgement: what was promised must be there.
/// If `n > p`, it may have been before, and nothing is demanded.
final class Acknowledgements<Value: Sendable>: Sendable {
  private let disk: PowerCutDisk
  private let values = Locked<[(moment: PowerCutDisk.Moment, value: Value)]>([])

  init(_ disk: PowerCutDisk) { self.disk = disk }

  /// From any thread, after the acknowledgement has been received.
  func record(_ value: Value) {
    let now = disk.now
    values.withLock { $0.append((now, value)) }
  }

  /// What had been promised when the power failed.
  func promised(at position: Int) -> [Value] {
    values.withLock { $0.filter { disk.isBefore($0.moment, position) }.map(\.value) }
  }
}

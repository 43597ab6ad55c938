// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import CEngines
import Foundation

/// What an engine has to do.
struct Job: Sendable {
  enum Pattern: String, ExpressibleByArgument, CaseIterable, Sendable, Codable {
    case randread, randwrite, read, write, append

    var isWrite: Bool { self != .randread && self != .read }
    var isRandom: Bool { self == .randread || self == .randwrite }
  }

  var pattern: Pattern
  var blockSize: Int
  var depth: Int
  var file: String
  var size: Int
  /// In seconds.
  var runtime: Double
  var isDirect: Bool
  /// After so many writes, an fdatasync; 0 is never.
  var fdatasyncEvery: Int
  var verifies: Bool
  /// How often to open the file, to use all of the descriptors in turn. This library only.
  var files = 1
  /// How many contexts to spread the requests over, each on a queue of its own, each with the whole
  /// depth. This library only.
  var contexts = 1

  var blocks: Int { size / blockSize }

  /// Opens the file as the job says.
  func open() throws -> Int32 {
    let descriptor = cengines_open(
      file, isDirect ? 1 : 0, pattern.isWrite ? 1 : 0, pattern == .append ? 1 : 0)
    guard descriptor >= 0 else {
      let hint = -descriptor == EINVAL && isDirect ? "; no direct I/O there? try --buffered" : ""
      throw BenchError("\(file): \(String(cString: strerror(-descriptor)))\(hint)")
    }
    return descriptor
  }

  /// Makes sure that the file is there, has its size, and has been written, with what `--verify`
  /// expects.
  func prepareFile(fill: Bool, progress: (Double) -> Void) throws {
    guard pattern != .append else { return }
    var status = stat()
    let isThere = stat(file, &status) == 0
    if isThere && status.st_mode & S_IFMT == S_IFBLK {
      guard !pattern.isWrite && !fill else {
        throw BenchError(
          "\(file) is a block device: \(fill ? "--verify" : "--rw \(pattern)") would overwrite it")
      }
      return
    }
    if isThere && status.st_size > 0 && !fill {
      guard Int(status.st_size) >= size else {
        throw BenchError(
          "\(file) is there, and has \(status.st_size) bytes: give that as --size, or another --file"
        )
      }
      return
    }
    var writing = self
    writing.pattern = .write
    let descriptor = try writing.open()
    defer { close(descriptor) }
    let piece = 1 << 20
    let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: piece, alignment: 4096)
    defer { memory.deallocate() }
    var offset = 0
    while offset < size {
      cengines_stamp(memory.baseAddress, UInt64(piece), UInt64(offset))
      let count = min(piece, size - offset)
      guard pwrite(descriptor, memory.baseAddress, count, off_t(offset)) == count else {
        throw BenchError("\(file): \(String(cString: strerror(errno)))")
      }
      offset += count
      progress(Double(offset) / Double(size))
    }
    fsync(descriptor)
  }
}

struct BenchError: Error, CustomStringConvertible {
  let description: String
  init(_ description: String) { self.description = description }
}

/// Where requests go, one after the other: other places for each engine and each run, so that none reads
/// what the one before has brought into a cache.
struct Offsets {
  private let pattern: Job.Pattern
  private let blockSize: UInt64
  private let blocks: UInt64
  private var state: UInt64
  private var next: UInt64 = 0

  /// - Parameter share: which of as many parts as the job has depth a sequence begins with.
  init(_ job: Job, share: Int = 0) {
    pattern = job.pattern
    blockSize = UInt64(job.blockSize)
    blocks = UInt64(job.blocks)
    state = Self.randomState
    next = UInt64(share) * blocks / UInt64(job.depth)
  }

  /// Any state of the generator's but 0.
  static var randomState: UInt64 { .random(in: 1...UInt64.max) }

  /// xorshift64 (Marsaglia, "Xorshift RNGs", 2003), as in the C engines.
  mutating func removeFirst() -> Int64 {
    switch pattern {
    case .randread, .randwrite:
      state ^= state << 13
      state ^= state >> 7
      state ^= state << 17
      return Int64(state % blocks * blockSize)
    case .read, .write:
      defer { next += 1 }
      return Int64(next % blocks * blockSize)
    case .append:
      defer { next += 1 }
      return Int64(next * blockSize)
    }
  }
}

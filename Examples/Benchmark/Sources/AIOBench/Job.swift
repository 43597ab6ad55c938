// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import CEngines
import Foundation

/// A job for an engine.
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
  /// The time to run for, in seconds.
  var runtime: Double
  var isDirect: Bool
  /// Whether the file is dropped from the page cache before each run.
  var isCold = false
  /// The number of writes before each fdatasync; 0 for none.
  var fdatasyncEvery: Int
  var verifies: Bool
  /// The number of descriptors of the file, used in turn. For this library's engines.
  var files = 1
  /// The number of contexts, each on a queue of its own and with the whole depth. For this
  /// library's engines.
  var contexts = 1

  var blocks: Int { size / blockSize }

  /// Opens the file: for reading or writing, direct or not, as the job says.
  func open() throws -> Int32 {
    let descriptor = cengines_open(
      file, isDirect ? 1 : 0, pattern.isWrite ? 1 : 0, pattern == .append ? 1 : 0)
    guard descriptor >= 0 else {
      let hint = -descriptor == EINVAL && isDirect ? "; no direct I/O there? try --buffered" : ""
      throw BenchError("\(file): \(String(cString: strerror(-descriptor)))\(hint)")
    }
    return descriptor
  }

  /// Drops the file from the page cache.
  func evict() throws {
    let descriptor = cengines_open(file, 0, 0, 0)
    guard descriptor >= 0 else {
      throw BenchError("\(file): \(String(cString: strerror(-descriptor)))")
    }
    defer { close(descriptor) }
    guard posix_fadvise(descriptor, 0, 0, POSIX_FADV_DONTNEED) == 0 else {
      throw BenchError("\(file) cannot be dropped from the page cache")
    }
  }

  /// Makes the file if it is missing or empty, and fills it with the blocks that `--verify`
  /// expects.
  ///
  /// - Parameter fill: whether to fill it in any case.
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

/// The reason why a measurement cannot be made, as a sentence for the user.
struct BenchError: Error, CustomStringConvertible {
  let description: String
  init(_ description: String) { self.description = description }
}

/// The offsets of a job's requests, in order. Random ones differ for each engine and run, so that
/// none reads what the one before has brought into a cache.
struct Offsets {
  private let pattern: Job.Pattern
  private let blockSize: UInt64
  private let blocks: UInt64
  private var state: UInt64
  private var next: UInt64 = 0

  /// - Parameter share: the part of the file, of as many as the job's depth, that sequential
  ///   offsets begin with.
  init(_ job: Job, share: Int = 0) {
    pattern = job.pattern
    blockSize = UInt64(job.blockSize)
    blocks = UInt64(job.blocks)
    state = Self.randomState
    next = UInt64(share) * blocks / UInt64(job.depth)
  }

  /// A random state of the generator, which must not be 0.
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

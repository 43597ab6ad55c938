// SPDX-License-Identifier: Apache-2.0
//
// The jobs of `plugged`: their files, and what wrk asks for.

import ArgumentParser
import Foundation

enum PluggedJob: String, Codable, CaseIterable {
  case cold, cached, small, idle

  static var names: String { allCases.map(\.rawValue).joined(separator: ",") }

  var order: Int { Self.allCases.firstIndex(of: self) ?? 0 }
}

struct PluggedJobs: ExpressibleByArgument {
  var all: [PluggedJob]

  init(_ all: [PluggedJob]) { self.all = all }

  init?(argument: String) {
    let names = argument.split(separator: ",")
    all = names.compactMap { PluggedJob(rawValue: String($0)) }
    guard !all.isEmpty, all.count == names.count else { return nil }
  }

  var defaultValueDescription: String { all.map(\.rawValue).joined(separator: ",") }
}

/// The files that are served: in `www`, the files `cold` and `cached` for ranges of 4 KiB, and the
/// folder `small`.
struct PluggedFiles {
  static let blockSize = 4096
  static let smallSize = 65536

  let directory: String
  let work: PluggedWork

  /// Makes the files of a job, unless they are there. Those that are to be cached, are then.
  func prepare(_ job: PluggedJob) throws {
    switch job {
    case .cold: try make("cold", work.size.bytes, seed: 1)
    case .cached, .idle: try make("cached", work.cachedSize.bytes, seed: 2)
    case .small:
      for number in 0..<work.smallFiles {
        try make("small/\(number)", Self.smallSize, seed: UInt64(3 + number))
      }
    }
  }

  /// Fails if there is no room for what the jobs need.
  func checkRoom(_ jobs: [PluggedJob]) throws {
    let needed = jobs.reduce(0) {
      switch $1 {
      case .cold: $0 + work.size.bytes
      case .cached: $0 + work.cachedSize.bytes
      case .small: $0 + work.smallFiles * Self.smallSize
      case .idle: $0
      }
    }
    var status = statvfs()
    guard statvfs(directory, &status) == 0 else { return }
    let free = Int(status.f_bavail) * Int(status.f_frsize)
    guard free > needed + 64 << 20 else {
      throw BenchError(
        "\(directory) has room for \(free >> 20) MiB, and the files need \(needed >> 20) MiB: give "
          + "another --directory, or a smaller --size")
    }
  }

  /// The page cache is as the job has it: to be called before each run.
  func settle(_ job: PluggedJob) throws {
    guard job == .cold else { return }
    let file = open("\(directory)/www/cold", O_RDONLY | O_CLOEXEC)
    guard file >= 0 else { throw BenchError("\(directory)/www/cold: cannot be opened") }
    defer { close(file) }
    let error = posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED)
    guard error == 0 else { throw BenchError("posix_fadvise: \(String(cString: strerror(error)))") }
  }

  /// Writes a file through the page cache, and waits for the disk, so that its pages can be
  /// dropped.
  private func make(_ name: String, _ size: Int, seed: UInt64) throws {
    let path = "\(directory)/www/\(name)"
    guard !FileManager.default.fileExists(atPath: path) else { return }
    let file = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0o644)
    func check(_ isGood: Bool) throws {
      guard isGood else { throw BenchError("\(path): \(String(cString: strerror(errno)))") }
    }
    try check(file >= 0)
    defer { close(file) }
    let pieceSize = 1 << 20
    let piece = UnsafeMutableBufferPointer<UInt64>.allocate(capacity: pieceSize / 8)
    defer { piece.deallocate() }
    for offset in stride(from: 0, to: size, by: pieceSize) {
      if size > pieceSize { ProgressLine.show("filling \(name): \(offset * 100 / size) %") }
      // No two words alike, so that a wrong place is noticed.
      for index in piece.indices {
        piece[index] = (UInt64(offset + index * 8) &+ seed << 40) &* 0x9e37_79b9_7f4a_7c15
      }
      let count = min(pieceSize, size - offset)
      try check(write(file, piece.baseAddress, count) == count)
    }
    if size > pieceSize { try check(fsync(file) == 0) }
    ProgressLine.clear()
  }

  /// A part of a file, to compare an answer with.
  func bytes(_ name: String, _ range: Range<Int>) throws -> [UInt8] {
    let file = open("\(directory)/www/\(name)", O_RDONLY | O_CLOEXEC)
    defer { if file >= 0 { close(file) } }
    var bytes = [UInt8](repeating: 0, count: range.count)
    guard pread(file, &bytes, range.count, off_t(range.lowerBound)) == range.count else {
      throw BenchError("\(name): \(String(cString: strerror(errno)))")
    }
    return bytes
  }

  /// The script that has wrk ask for what a job is about; its arguments are a seed for this run.
  func script(_ job: PluggedJob) -> String {
    let request =
      switch job {
      case .small:
        """
          return "GET /small/" .. math.random(0, \(work.smallFiles - 1)) .. " HTTP/1.1\\r\\nHost: h\\r\\n\\r\\n"
        """
      default:
        """
          local first = math.random(0, \((job == .cold ? work.size : work.cachedSize).bytes / Self.blockSize - 1)) * \(Self.blockSize)
          return "GET /\(job.rawValue) HTTP/1.1\\r\\nHost: h\\r\\nRange: bytes=" .. first .. "-" .. first + \(Self.blockSize - 1) .. "\\r\\n\\r\\n"
        """
      }
    return """
      local threads = 0
      setup = function(thread) threads = threads + 1; thread:set("number", threads) end
      init = function(arguments) math.randomseed(tonumber(arguments[1]) * 100 + number) end
      request = function()
      \(request)
      end
      done = function(summary, latency)
        local errors = summary.errors
        io.write(string.format("result %d %d %d %d %d\\n", summary.requests, summary.duration,
          errors.connect + errors.read + errors.write + errors.timeout + errors.status,
          latency:percentile(50), latency:percentile(99)))
      end

      """
  }
}

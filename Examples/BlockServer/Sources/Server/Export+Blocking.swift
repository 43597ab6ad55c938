// SPDX-License-Identifier: Apache-2.0
//
// The calls that may block, on an export's worker queue only: holes, zeros, and the file's last
// partial block.

import CStorage
import Glibc
import SystemPackage

extension Export {
  struct Extent: Equatable {
    var length: UInt64
    var isHole: Bool
  }

  /// Why a job failed.
  struct Failure: Error {
    var errno: Errno
  }

  /// The most extents in one answer.
  static let mostExtents = 4096
  /// The most extents found in one piece of a job.
  private static let extentsOfPiece = 256
  /// The bytes trimmed or zeroed in one piece of a job.
  private static let sizeOfPiece: UInt64 = 64 << 20

  /// The range of the next piece of a job.
  private func piece(of job: Job) -> Range<UInt64> {
    let all = job.command.range
    switch job.command.request.command {
    case .trim, .writeZeroes:
      // None is small, unless all is: what is no whole block cannot be zeroed fast.
      let smallest: UInt64 = 1 << 20
      var end = down(job.position + Self.sizeOfPiece, to: smallest)
      if end + smallest > all.upperBound { end = all.upperBound }
      return job.position..<end
    default: return job.position..<all.upperBound
    }
  }

  /// The range that the next piece of a job needs for itself.
  func lockedRange(of job: Job) -> Range<UInt64>? {
    job.command.request.command == .blockStatus ? nil : pages(piece(of: job))
  }

  /// Does the next piece of a job.
  ///
  /// - Returns: whether it was the last.
  func perform(_ job: Job) -> Bool {
    let request = job.command.request
    let piece = piece(of: job)
    let errno: Errno?
    switch request.command {
    case .blockStatus: return findExtents(job, piece)
    case .trim: errno = trim(piece)
    case .writeZeroes:
      errno = zero(
        piece, keepsRoom: request.flags.contains(.noHole),
        onlyFast: request.flags.contains(.fastZero))
    default: errno = write(payloadOf: job.command)
    }
    if let errno {
      job.result = .failure(Failure(errno: errno))
      return true
    }
    job.position = piece.upperBound
    return job.position == job.command.range.upperBound
  }

  private func findExtents(_ job: Job, _ range: Range<UInt64>) -> Bool {
    guard case .success(var found) = job.result else { return true }
    job.result = .success([])
    let most = job.command.request.flags.contains(.requestOne) ? 1 : Self.mostExtents
    let next = extents(range, most: min(most - found.count, Self.extentsOfPiece))
    found += next
    job.position += next.reduce(0) { $0 + $1.length }
    job.result = .success(found)
    return job.position == job.command.range.upperBound || found.count == most
  }

  /// The extents of a range, data or hole, from its beginning on. At least one, and no more than
  /// `most`; together they may cover less than the range.
  func extents(_ range: Range<UInt64>, most: Int) -> [Extent] {
    var extents: [Extent] = []
    var position = range.lowerBound
    while position < range.upperBound && extents.count < most {
      let data = cstorage_seek_data(plain.rawValue, Int64(position))
      var end = range.upperBound
      let isHole: Bool
      if data == -Int64(ENXIO) {
        // Nothing but a hole up to the file's end. If somebody has cut the file, what is missing is
        // no hole, which nobody would read: a read of it fails, and says so.
        let fileEnd =
          isBlockDevice ? range.upperBound : UInt64(max(0, lseek(plain.rawValue, 0, SEEK_END)))
        isHole = fileEnd > position
        if isHole { end = min(end, fileEnd) }
      } else if data > Int64(position) {
        isHole = true
        end = min(end, UInt64(data))
      } else {
        // Data here; or a file that does not tell, whose every byte may be data.
        isHole = false
        let hole = data < 0 ? data : cstorage_seek_hole(plain.rawValue, Int64(position))
        if hole > Int64(position) { end = min(end, UInt64(hole)) }
      }
      extents.append(Extent(length: end - position, isHole: isHole))
      position = end
    }
    return extents
  }

  /// The end of the last page's room, which the file may use in part. To punch up to the file's end
  /// only would leave that page allocated. (The file's size does not change.)
  private var endOfRoom: UInt64 { isBlockDevice ? size : up(size, to: page) }

  /// Frees the room of a range, whose contents are undefined then. A hint: it succeeds without
  /// effect where the filesystem cannot.
  func trim(_ range: Range<UInt64>) -> Errno? {
    let start = up(range.lowerBound, to: page)
    let end = range.upperBound == size ? endOfRoom : down(range.upperBound, to: page)
    guard start < end else { return nil }
    var answer = cstorage_punch_hole(plain.rawValue, Int64(start), Int64(end - start))
    if answer == -EOPNOTSUPP && isBlockDevice {
      answer = cstorage_discard(plain.rawValue, Int64(start), Int64(end - start))
    }
    switch answer {
    case 0, -EOPNOTSUPP, -EINVAL: return nil
    default: return Errno(rawValue: -answer)
    }
  }

  /// Makes a range read as zeros.
  ///
  /// - Parameters:
  ///   - keepsRoom: whether the range has to be allocated afterwards.
  ///   - onlyFast: whether to fail with `.notSupported` rather than to write zeros.
  func zero(_ range: Range<UInt64>, keepsRoom: Bool, onlyFast: Bool) -> Errno? {
    // No power of two on every filesystem.
    let hasCachedEdges =
      !isBlockDevice
      && (range.lowerBound % zeroUnit != 0 || range.upperBound % zeroUnit != 0)
    if hasCachedEdges { syncs.noteCachedWrite() }
    defer { if hasCachedEdges { syncs.noteCachedWrite() } }
    // A block device takes whole blocks only; a file any bytes.
    let unit = isBlockDevice ? block : 1
    let start = min(up(range.lowerBound, to: unit), range.upperBound)
    let end = max(down(range.upperBound, to: unit), start)
    if start < end {
      let (offset, count) = (Int64(start), Int64(end - start))
      var answer = -EOPNOTSUPP
      if !keepsRoom {
        let end = end == size ? endOfRoom : end
        answer = cstorage_punch_hole(plain.rawValue, offset, Int64(end - start))
      }
      // On a block device this may be the kernel writing zeros.
      if answer == -EOPNOTSUPP && !(onlyFast && isBlockDevice) {
        answer = cstorage_zero_range(plain.rawValue, offset, count)
      }
      if answer == -EOPNOTSUPP {
        if onlyFast { return .notSupported }
        if let errno = writeZeros(start..<end) { return errno }
      } else if answer != 0 {
        return Errno(rawValue: -answer)
      }
    } else if onlyFast {
      return .notSupported
    }
    return writeZeros(range.lowerBound..<start) ?? writeZeros(end..<range.upperBound)
  }

  private func writeZeros(_ range: Range<UInt64>) -> Errno? {
    guard !range.isEmpty else { return nil }
    let zeros = [UInt8](repeating: 0, count: Int(min(UInt64(range.count), 1 << 20)))
    return zeros.withUnsafeBytes { zeros in
      var position = range.lowerBound
      while position < range.upperBound {
        let count = Int(min(range.upperBound - position, UInt64(zeros.count)))
        if let errno = write(.init(rebasing: zeros[..<count]), at: position) { return errno }
        position += UInt64(count)
      }
      return nil
    }
  }

  /// Writes the payload of a command through the page cache: for the end of a file whose size is
  /// not a multiple of the block.
  func write(payloadOf command: Command) -> Errno? {
    let length = Int(command.request.length)
    var position = 0
    while position < length {
      let memory = command.memory(from: position, upTo: length)
      if let errno = write(.init(memory), at: command.request.offset + UInt64(position)) {
        return errno
      }
      position += memory.count
    }
    return nil
  }

  private func write(_ bytes: UnsafeRawBufferPointer, at offset: UInt64) -> Errno? {
    syncs.noteCachedWrite()
    defer { syncs.noteCachedWrite() }
    var done = 0
    while done < bytes.count {
      let count = pwrite(
        plain.rawValue, bytes.baseAddress! + done, bytes.count - done,
        off_t(offset) + off_t(done))
      if count > 0 {
        done += count
      } else if count < 0 && errno != EINTR {
        return Errno(rawValue: errno)
      } else if count == 0 {
        return .ioError
      }
    }
    return nil
  }
}

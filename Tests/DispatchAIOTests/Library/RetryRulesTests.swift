// SPDX-License-Identifier: Apache-2.0

import Glibc
import XCTest

@testable import DispatchAIO

/// What becomes of a request after each answer: the whole of the retry rules, as a table.
final class RetryRulesTests: XCTestCase {
  private typealias Traits = OpenFile.Traits

  private let direct = Traits(alignment: BlockAlignment(memory: 512, offset: 4096))
  private let buffered = Traits(isDirect: false)
  private let appending = Traits(
    appends: true, alignment: BlockAlignment(memory: 512, offset: 4096))
  private let remote = Traits(
    alignment: BlockAlignment(memory: 512, offset: 4096), fileSystem: .network)
  private let durable = Traits(
    syncsWrites: true, alignment: BlockAlignment(memory: 512, offset: 4096))
  private let log = Traits(isDirect: false, appends: true, syncsWrites: true)
  private let fuse = Traits(fileSystem: .fuse)

  private let automatic = Traits(isDirect: false, isAutomatic: true)

  private func goesOn(
    _ offset: Int, _ transferred: Int? = nil, _ route: Route? = nil, isRetry: Bool = false
  ) -> Resolution {
    .continued(
      resumeOffset: offset, transferred: transferred ?? offset, route: route, isRetry: isRetry)
  }

  func testCounts() {
    let rows: [(String, Attempt, Resolution)] = [
      ("all", attempt(.read, .nowait, 16384, direct), .succeeded(16384)),
      ("the rest", attempt(.read, .nowait, 8192, direct, from: 8192), .succeeded(16384)),
      ("a sync", attempt(.fsync, .inline, 0, direct, length: 0), .succeeded(0)),
      ("nothing asked for", attempt(.write, .inline, 0, direct, length: 0), .succeeded(0)),
      ("all of a chunk", attempt(.read, .nowait, 4096, direct, chunk: 4096), goesOn(4096)),
      (
        "all of a chunk, written", attempt(.write, .nowait, 4096, direct, chunk: 4096), goesOn(4096)
      ),

      // The end of a file.
      ("nothing more", attempt(.read, .nowait, 0, buffered, from: 5000), .succeeded(5000)),
      ("within a block", attempt(.read, .nowait, 5000, direct), .succeeded(5000)),
      ("at a boundary, may go on", attempt(.read, .nowait, 8192, direct), goesOn(8192)),
      // No end of a file.
      ("what the page cache had", attempt(.read, .nowait, 5000, buffered), goesOn(5000)),
      ("short, from a thread", attempt(.read, .syscall, 5000, buffered), goesOn(5000)),
      ("FUSE, 1000 bytes at a time", attempt(.read, .syscall, 1000, fuse), goesOn(1000)),
      ("NFS, short within a block", attempt(.read, .offload, 5000, remote), goesOn(4096, 5000)),
      (
        "NFS, the same end when asked again",
        attempt(.read, .offload, 904, remote, from: 4096, done: 5000), .succeeded(5000)
      ),
      (
        "NFS, more when asked again",
        attempt(.read, .offload, 4200, remote, from: 4096, done: 5000), goesOn(8192, 8296)
      ),

      // Direct reads of a file opened `.automatic`: the engine knows where the file ends.
      (
        "all of a chunk", attempt(.read, .direct, 4096, automatic, chunk: 4096),
        goesOn(4096, nil, .direct)
      ),
      ("the end", attempt(.read, .direct, 5000, automatic, isFileEnd: true), .succeeded(5000)),
      ("no end", attempt(.read, .direct, 4096, automatic), goesOn(4096)),

      // Short writes.
      ("NOWAIT, buffered", attempt(.write, .nowait, 5000, buffered), goesOn(5000, nil, .syscall)),
      ("NOWAIT, direct", attempt(.write, .nowait, 5000, direct), goesOn(4096, 5000, .offload)),
      ("buffered", attempt(.write, .syscall, 5000, buffered), goesOn(5000)),
      ("direct", attempt(.write, .offload, 5000, direct), goesOn(4096, 5000)),
      (
        "no further", attempt(.write, .offload, 904, direct, from: 4096, done: 5000),
        goesOn(4096, 5000, isRetry: true)
      ),
      (
        "no further, time after time",
        attempt(.write, .offload, 904, direct, from: 4096, done: 5000, mayRetry: false),
        .failed(EIO)
      ),
      // Nothing may be appended twice.
      ("appended to a boundary", attempt(.write, .syscall, 8192, appending), goesOn(8192)),
      ("appended within a block", attempt(.write, .syscall, 5000, appending), .failed(EIO)),
      // An untorn write is whole; the parts of a durable one are durable, each.
      ("untorn", attempt(.write, .nowait, 8192, direct, options: .atomic), .failed(EIO)),
      (
        "durable", attempt(.write, .nowait, 8192, direct, options: .dataSync),
        goesOn(8192, nil, .offload)
      ),
    ]
    for (what, attempt, resolution) in rows {
      XCTAssertEqual(attempt.resolve(), resolution, what)
    }
  }

  func testErrors() {
    let rows: [(String, Attempt, Resolution)] = [
      ("would sleep", fail(.read, .nowait, EAGAIN, direct), .retried(.offload, isRetry: false)),
      (
        "would sleep, buffered", fail(.read, .nowait, EAGAIN, buffered),
        .retried(.syscall, isRetry: false)
      ),
      ("no NOWAIT", fail(.write, .nowait, EOPNOTSUPP, direct), .retried(.offload, isRetry: false)),
      ("no AIO sync", fail(.fsync, .inline, EINVAL, direct), .retried(.syscall, isRetry: false)),
      ("no read_iter", fail(.read, .nowait, EINVAL, buffered), .retried(.syscall, isRetry: false)),
      ("the system call says so, too", fail(.read, .syscall, EINVAL, buffered), .failed(EINVAL)),
      ("unasked", fail(.read, .inline, EAGAIN, direct), .retried(.inline, isRetry: true)),
      ("interrupted", fail(.write, .syscall, EINTR, direct), .retried(.syscall, isRetry: true)),
      (
        "unasked, time after time", fail(.read, .offload, EAGAIN, direct, mayRetry: false),
        .failed(EAGAIN)
      ),
      ("no room, all", fail(.write, .syscall, ENOSPC, direct), .shortened(8192)),
      ("no room, a block", fail(.write, .syscall, ENOSPC, direct, chunk: 4096), .failed(ENOSPC)),
      ("quota", fail(.write, .nowait, EDQUOT, buffered), .shortened(8192)),
      ("too large", fail(.write, .syscall, EFBIG, direct), .shortened(8192)),
      ("no room for a sync", fail(.fsync, .inline, ENOSPC, direct), .failed(ENOSPC)),
      ("bad disk", fail(.read, .nowait, EIO, direct), .failed(EIO)),
      ("cancelled", fail(.read, .nowait, ECANCELED, direct), .failed(ECANCELED)),
      ("bad memory", fail(.read, .nowait, EFAULT, direct), .failed(EFAULT)),
      (
        "cold, automatic", fail(.read, .nowait, EAGAIN, automatic, refusalRoute: .direct),
        .retried(.direct, isRetry: false)
      ),
      ("dirty pages", fail(.read, .direct, EAGAIN, automatic), .retried(.syscall, isRetry: false)),
      ("misaligned", fail(.read, .direct, EINVAL, automatic), .retried(.syscall, isRetry: false)),
      (
        "no NOWAIT", fail(.read, .direct, EOPNOTSUPP, automatic), .retried(.syscall, isRetry: false)
      ),
      ("bad disk, direct", fail(.read, .direct, EIO, automatic), .failed(EIO)),
      // The answer may be that of the sync, which the kernel gives only once.
      ("no room, durable", fail(.write, .syscall, ENOSPC, direct, .dataSync), .failed(ENOSPC)),
      ("no room, O_DSYNC", fail(.write, .syscall, ENOSPC, durable), .failed(ENOSPC)),
      ("quota, durable", fail(.write, .nowait, EDQUOT, buffered, .sync), .failed(EDQUOT)),
      ("too large, untorn", fail(.write, .nowait, EFBIG, direct, .atomic), .failed(EFBIG)),
      (
        "would sleep, durable", fail(.write, .nowait, EAGAIN, direct, .dataSync),
        .retried(.offload, isRetry: false)
      ),
      (
        "no untorn writes", fail(.write, .offload, EOPNOTSUPP, direct, .atomic), .failed(EOPNOTSUPP)
      ),
      ("no RWF_DONTCACHE, NOWAIT", fail(.read, .nowait, EOPNOTSUPP, buffered, .uncached), .cached),
      ("no RWF_DONTCACHE", fail(.write, .syscall, EOPNOTSUPP, buffered, .uncached), .cached),
      // Nothing may be appended twice.
      ("no room, append", append(ENOSPC), .failed(ENOSPC)),
      ("interrupted append", append(EINTR), .retried(.syscall, isRetry: true)),
      ("interrupted after a part", append(EINTR, done: 4096), .failed(EINTR)),
      ("interrupted in the sync", append(EINTR, .dataSync), .failed(EINTR)),
      (
        "interrupted append, O_APPEND", fail(.write, .syscall, EINTR, appending),
        .retried(.syscall, isRetry: true)
      ),
      (
        "interrupted in the sync, O_APPEND",
        fail(.write, .syscall, EINTR, appending, .dataSync), .failed(EINTR)
      ),
      ("no room, O_APPEND, O_DSYNC", fail(.write, .syscall, ENOSPC, log), .failed(ENOSPC)),
      ("append, no RWF_DONTCACHE", append(EOPNOTSUPP, .uncached), .cached),
      ("inline only", fail(.fsync, .inline, EINVAL, direct, mayOffload: false), .failed(EINVAL)),
    ]
    for (what, attempt, resolution) in rows {
      XCTAssertEqual(attempt.resolve(), resolution, what)
    }
  }

  private func attempt(
    _ verb: Verb, _ route: Route, _ answer: Int, _ file: Traits, length: Int = 16384,
    from resumeOffset: Int = 0, done: Int? = nil, chunk: Int = .max, mayRetry: Bool = true,
    isFileEnd: Bool = false, options: RequestOptions = []
  ) -> Attempt {
    Attempt(
      verb: verb, route: route, answer: answer, length: length, resumeOffset: resumeOffset,
      transferred: done ?? resumeOffset, chunkLimit: chunk, options: options, mayRetry: mayRetry,
      isFileEnd: isFileEnd, file: file)
  }

  private func append(_ errno: Int32, _ options: RequestOptions = [], done: Int = 0) -> Attempt {
    Attempt(
      verb: .write, route: .syscall, answer: -Int(errno), length: 16384, resumeOffset: done,
      transferred: done, options: options.union(.append), file: buffered)
  }

  private func fail(
    _ verb: Verb, _ route: Route, _ errno: Int32, _ file: Traits,
    _ options: RequestOptions = [], chunk: Int = .max,
    mayRetry: Bool = true, mayOffload: Bool = true, refusalRoute: Route? = nil
  ) -> Attempt {
    Attempt(
      verb: verb, route: route, answer: -Int(errno), length: 16384, chunkLimit: chunk,
      options: options, mayRetry: mayRetry, mayOffload: mayOffload, refusalRoute: refusalRoute,
      file: file)
  }
}

// SPDX-License-Identifier: Apache-2.0

import SystemPackage
import XCTest

@testable import DispatchAIO

/// What errors advise.
final class ErrorTests: XCTestCase {
  /// Goal: nobody who follows the advice of a failed sync loses data: the kernel reports a failed
  /// write-back once, and counts the pages as clean.
  func testSyncs() {
    let lost = "write it again"
    for (errno, words) in [
      (Errno.noSpace, ["No space left on device (errno 28)", lost, "free some space"]),
      (.diskQuotaExceeded, ["errno 122", lost, "free some space"]),
      (.ioError, ["errno 5", lost, "kernel log"]),
      (.staleNFSFileHandle, ["errno 116", lost]), (.readOnlyFileSystem, ["errno 30", lost]),
      (.fileTooLarge, ["errno 27", lost]), (.timedOut, ["errno 110", lost]),
    ] {
      for operation in [AIOError.Operation.fsync, .fdatasync] {
        let error = AIOError(errno: errno.rawValue, .init(operation: operation, path: "file"))
        let sentence = "\(error)"
        for words in words + [
          "may be gone", "to sync again proves nothing", "\(operation) of file",
        ] {
          XCTAssertTrue(sentence.contains(words), "no \"\(words)\" in: \(sentence)")
        }
        XCTAssertFalse(sentence.contains("submit again"), sentence)
        XCTAssertFalse(error.isRetryable)
        XCTAssertEqual(error.errno, errno)
        XCTAssertTrue(sentence.hasSuffix(error.recoverySuggestion ?? "none"))
      }
      // A write says how it failed, and has lost nothing but itself.
      let write = AIOError(
        errno: errno.rawValue, .init(operation: .write, path: "file", offset: 0, length: 1))
      XCTAssertFalse("\(write)".contains("may be gone"), "\(write)")
      XCTAssertFalse(write.isRetryable)
    }
    print(
      "  \(AIOError(errno: Errno.noSpace.rawValue, .init(operation: .fdatasync, path: "/data/log")))"
    )
    // A durable write says what a sync would say, whatever makes it durable.
    let (read, write) = (
      DispatchAIO.Operation.read(into: .raws([])), DispatchAIO.Operation.write(from: .raws([]))
    )
    for (operation, options, syncsWrites, isDurable) in [
      (write, [], false, false), (write, .dataSync, false, true), (write, [], true, true),
      (read, [], true, false),
    ] as [(DispatchAIO.Operation, RequestOptions, Bool, Bool)] {
      let traits = OpenFile.Traits(syncsWrites: syncsWrites)
      let file = OpenFile(descriptor: -1, path: "file", traits: traits) { _ in }
      let error = AIOError(errno: EIO, .init(operation, file, 0, 1, options))
      XCTAssertEqual("\(error)".contains(lost), isDurable, "\(error)")
    }
    // Answers that come before anything was tried.
    for errno in [Errno.badFileDescriptor, .invalidArgument, .noFunction, .interrupted] {
      let error = AIOError(errno: errno.rawValue, .init(operation: .fsync, path: "file"))
      XCTAssertNil(error.recoverySuggestion, "\(error)")
    }
  }

  /// The suggestion is the end of the sentence, for every answer that has one; a refusal of the
  /// library's has its own sentence.
  func testSuggestions() {
    for (errno, code, words) in [
      (Errno.noSpace, AIOError.Code.noSpace, "free some space"),
      (.fileTooLarge, .fileSizeLimit, "ulimit -f"), (.ioError, .device, "kernel log"),
      (.tooManyOpenFiles, .descriptorLimit, "ulimit -n"),
      (.tooManyOpenFilesInSystem, .descriptorLimit, "fs.file-max"),
    ] {
      let error = AIOError(errno: errno.rawValue, .init(operation: .write, path: "file"))
      XCTAssertEqual(error.code, code)
      let suggestion = error.recoverySuggestion ?? "none"
      XCTAssertTrue(suggestion.contains(words), suggestion)
      XCTAssertTrue("\(error)".hasSuffix("; \(suggestion)"), "\(error)")
    }
    XCTAssertNil(AIOError(errno: 2, .init(operation: .open, path: "file")).recoverySuggestion)
    XCTAssertNil(AIOError.fileClosed(.init(operation: .read)).recoverySuggestion)
  }

  /// Why there is no context.
  func testSettingUp() {
    for (errno, code, words) in [
      (Errno.tooManyOpenFiles, AIOError.Code.descriptorLimit, "ulimit -n"),
      (.tooManyOpenFilesInSystem, .descriptorLimit, "fs.file-max"),
      (.noSpace, .descriptorLimit, "fs.epoll.max_user_watches is "),
      (.resourceTemporarilyUnavailable, .contextLimit, "fs.aio-max-nr"),
      (.noFunction, .unavailable, "CONFIG_AIO"), (.notPermitted, .unavailable, "seccomp"),
      (.noMemory, .system, "memory"),
    ] {
      let error = AIOError.settingUp(errno: errno, queueDepth: 4)
      XCTAssertEqual(error.code, code)
      XCTAssertTrue("\(error)".contains(words), "\(error)")
    }
    // However many are said to be in use.
    let limit = AIOError(
      .contextLimit, .init(operation: .createContext),
      .contextLimit(asked: .max, inUse: .max, maximum: .max))
    XCTAssertTrue("\(limit)".contains("sysctl"), "\(limit)")
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// A line for each answer, as Apache's and nginx's "combined" format has it. The lines of a turn are
// written at once, before the turn's requests go down; where the disk, or the reader of standard
// output, falls behind or fails, lines are counted rather than kept.

import Dispatch
import DispatchAIO
import Glibc
import Logging
import ServerSupport
import SystemPackage

/// - Safety: `@unchecked Sendable` because it is confined to its loop's queue, but for
///   `isWriting`'s being reset there, by way of the context.
final class AccessLog: @unchecked Sendable {
  /// Where lines are written to. The loops share it.
  enum Sink: Sendable {
    case file(AIOFile)
    case standardOutput(DispatchQueue)
  }

  /// The most bytes that wait to be written.
  private static let limit = 1 << 20

  private let sink: Sink
  private unowned let context: AIOContext
  private let rate: Int?
  private let logger: Logger
  private var lines: [UInt8] = []
  /// The number of answers that `lines` tells of.
  private var lineCount = 0
  private var isFlushQueued = false
  private var isWriting = false
  private var dropped = 0
  private var second: Int64 = 0
  private var linesInSecond = 0
  private var isFinishing = false
  /// Called when there is nothing to write any more.
  private var whenIdle: (() -> Void)?

  /// - Parameter rate: The most lines in a second.
  init(_ sink: Sink, context: AIOContext, rate: Int?, logger: Logger) {
    (self.sink, self.context, self.rate, self.logger) = (sink, context, rate, logger)
  }

  /// Where a log is written to: a file, appended to, or `-` for standard output.
  static func sink(_ path: FilePath) throws(Failure) -> Sink {
    if path == "-" { return .standardOutput(DispatchQueue(label: "aio-httpd.log")) }
    do throws(AIOError) {
      return .file(
        try AIOFile.open(
          path, .writeOnly, options: [.create, .append],
          permissions: [.ownerReadWrite, .groupRead], caching: .buffered))
    } catch {
      let reason = error.errno.map { "\($0)" } ?? "not a regular file"
      throw Failure(
        """
        --access-log \(path.escaped): \(reason); name a regular file, which is made if it is \
        missing, or - for standard output
        """)
    }
  }

  /// What is kept of a request until it has been answered.
  struct Request {
    /// Its line, in quotes.
    var line: [UInt8] = []
    /// Referer and User-Agent, in quotes.
    var tail: [UInt8] = []

    init(_ head: RequestHead, _ bytes: Bytes) {
      line.reserveCapacity(head.line.count + 2)
      AccessLog.appendQuoted(head.line.of(bytes), to: &line)
      for field in [head.referer, head.userAgent] {
        tail.append(UInt8(ascii: " "))
        if let field {
          AccessLog.appendQuoted(field.of(bytes), to: &tail)
        } else {
          tail += "\"-\"".utf8
        }
      }
    }

    /// Of a head that could not be parsed, or did not come to its end: its first line, as far as it
    /// was received.
    init(received bytes: Bytes) {
      let line = bytes.drop { $0 == 13 || $0 == 10 }.prefix { $0 != 13 && $0 != 10 }
      AccessLog.appendQuoted(Bytes(rebasing: line), to: &self.line)
      tail = Array(" \"-\" \"-\"".utf8)
    }
  }

  /// In quotes; with quotes, backslashes, and what is not printable as `\xHH`, so that no client
  /// writes lines of its own.
  private static func appendQuoted(_ bytes: Bytes, to text: inout [UInt8]) {
    let digits = Array("0123456789abcdef".utf8)
    text.append(UInt8(ascii: "\""))
    for byte in bytes.prefix(2048) {
      switch byte {
      case UInt8(ascii: "\""), UInt8(ascii: "\\"), 0..<0x20, 0x7f...:
        text += [UInt8(ascii: "\\"), UInt8(ascii: "x"), digits[Int(byte >> 4)]]
        text.append(digits[Int(byte & 15)])
      default: text.append(byte)
      }
    }
    text.append(UInt8(ascii: "\""))
  }

  /// Adds a line. On the queue.
  ///
  /// - Parameters:
  ///   - seconds: The time, since 1970.
  ///   - date: The same as text, as the log has it.
  func add(
    _ request: Request, peer: String, status: Int, bytes: Int64, seconds: Int64, date: String
  ) {
    if seconds != second { (second, linesInSecond) = (seconds, 0) }
    linesInSecond += 1
    guard linesInSecond <= rate ?? .max, lines.count < Self.limit else {
      dropped += 1
      return
    }
    noteDropped()
    lines += "\(peer) - - [\(date)] ".utf8
    lines += request.line
    lines += " \(status) \(bytes)".utf8
    lines += request.tail
    lines.append(UInt8(ascii: "\n"))
    lineCount += 1
    guard !isFlushQueued else { return }
    isFlushQueued = true
    context.beforeSubmit { [self] in
      isFlushQueued = false
      flush()
    }
  }

  private func noteDropped() {
    guard dropped > 0 else { return }
    lines += "# \(dropped) answers are not in the log\n".utf8
    // Where this line is lost, too, they are missing still.
    lineCount += dropped
    dropped = 0
  }

  private func flush() {
    guard !isWriting, !lines.isEmpty else { return }
    isWriting = true
    let (lines, count) = (lines, lineCount)
    self.lines.removeAll(keepingCapacity: true)
    lineCount = 0
    switch sink {
    case .file(let file):
      let buffer = AIOBuffer(count: lines.count, alignment: 16)
      buffer.withUnsafeMutableBytes { $0.copyBytes(from: lines) }
      do throws(AIOError) {
        // The offset means nothing to a file that is appended to.
        try context.write(file, at: 0, from: buffer) { [self] result in
          if case .failure(let error) = result { lost(count, "\(error)") }
          written()
        }
      } catch {
        lost(count, "\(error)")
        written()
      }
    case .standardOutput(let queue):
      queue.async { [self, context] in
        var failure: Errno?
        do { try FileDescriptor.standardOutput.writeAll(lines) } catch { failure = error as? Errno }
        context.async { [self, failure] in
          if let failure { lost(count, "standard output: \(failure)") }
          written()
        }
      }
    }
  }

  private func lost(_ count: Int, _ error: String) {
    dropped += count
    logger.warning("the access log cannot be written, and lacks answers: \(error)")
  }

  private func written() {
    isWriting = false
    flush()
    if !isWriting, let body = whenIdle {
      whenIdle = nil
      body()
    }
  }

  // MARK: The end

  /// Writes what there is. On the queue.
  ///
  /// - Parameter body: called when it is written, if it is not already.
  /// - Returns: whether it is.
  func finish(_ body: @escaping () -> Void) -> Bool {
    if !isFinishing { noteDropped() }
    isFinishing = true
    flush()
    guard isWriting else { return true }
    whenIdle = body
    return false
  }
}

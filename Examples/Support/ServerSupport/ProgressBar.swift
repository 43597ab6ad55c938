// SPDX-License-Identifier: Apache-2.0

import Dispatch
import Synchronization
import SystemPackage

/// The progress of a copy, or of reading, as a line on standard error: bytes, percent, rate, time
/// left.
///
/// - Safety: `@unchecked Sendable` because all but the atomic is accessed on the queue only.
public final class ProgressBar: @unchecked Sendable {
  private static let interval = 0.2

  private let isShown: Bool
  private let queue = DispatchQueue(label: "progress")
  private let done = Atomic<Int>(0)
  private var timer: (any DispatchSourceTimer)?
  private var title = ""
  /// `nil` in a stage of which nobody knows how far it is.
  private var total: Int?
  private var start = DispatchTime.now()
  private let beginning = DispatchTime.now()

  public init(isShown: Bool) { self.isShown = isShown }

  /// Begins a stage, which is complete when all bytes of `extents` are done.
  public func begin(_ title: String, _ extents: [Range<Int64>]) {
    begin(title, total: extents.reduce(0) { $0 + $1.count })
  }

  /// Begins a stage that is one call: the line says which, and for how long it has lasted.
  public func begin(_ title: String) { begin(title, total: nil) }

  private func begin(_ title: String, total: Int?) {
    guard isShown else { return }
    queue.sync {
      self.title = title
      self.total = total
      done.store(0, ordering: .relaxed)
      start = .now()
      guard timer == nil else { return }
      let timer = DispatchSource.makeTimerSource(queue: queue)
      timer.schedule(deadline: .now() + Self.interval, repeating: Self.interval)
      timer.setEventHandler { [unowned self] in draw() }
      timer.activate()
      self.timer = timer
    }
  }

  /// Notes that more bytes are done. From any thread.
  public func add(_ bytes: Int) { done.add(bytes, ordering: .relaxed) }

  /// Removes the line.
  public func clear() {
    guard isShown else { return }
    queue.sync { stop() }
  }

  /// Replaces the line by a summary, which stays.
  public func finish(_ bytes: Int64) {
    guard isShown else { return }
    queue.sync {
      stop()
      let seconds = seconds(since: beginning)
      FileDescriptor.writeError(
        "\(ByteCount(Int(bytes))) in \((seconds * 10).rounded() / 10) s, "
          + "\(Self.rate(Double(bytes) / max(seconds, 1e-3)))\n")
    }
  }

  private func stop() {
    timer?.cancel()
    if timer != nil { FileDescriptor.writeError("\r\u{1b}[K") }
    timer = nil
  }

  private func draw() {
    let done = done.load(ordering: .relaxed)
    FileDescriptor.writeError(
      "\r" + Self.line(title, done, of: total, seconds: seconds(since: start)) + "\u{1b}[K")
  }

  /// The line of a stage. More may be done than there is by its total, which is what a file's size
  /// and its room on disk say.
  static func line(_ title: String, _ done: Int, of total: Int?, seconds: Double) -> String {
    guard let total else { return "\(title)  \(clock(seconds))" }
    let done = min(max(0, done), total)
    let part = total == 0 ? 1 : Double(done) / Double(total)
    let speed = Double(done) / max(seconds, 1e-3)
    let width = 20
    let filled = Int(part * Double(width))
    let bar =
      String(repeating: "#", count: filled) + String(repeating: "-", count: width - filled)
    var line = "\(title)[\(bar)] \(Int(part * 100))%  \(ByteCount(done)) of \(ByteCount(total))"
    line += "  \(rate(speed))"
    if speed > 0 { line += "  \(clock(Double(total - done) / speed)) left" }
    return line
  }

  private func seconds(since start: DispatchTime) -> Double {
    Double(DispatchTime.now().uptimeNanoseconds - start.uptimeNanoseconds) / 1e9
  }

  private static func rate(_ bytesPerSecond: Double) -> String {
    "\(Int(min(bytesPerSecond / 1_048_576, 1e9).rounded())) MiB/s"
  }

  private static func clock(_ seconds: Double) -> String {
    let seconds = Int(min(seconds, 359_999).rounded(.up))
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60)
    func twoDigits(_ number: Int) -> String { number < 10 ? "0\(number)" : "\(number)" }
    return hours > 0
      ? "\(hours):\(twoDigits(minutes)):\(twoDigits(seconds % 60))"
      : "\(minutes):\(twoDigits(seconds % 60))"
  }
}

// SPDX-License-Identifier: Apache-2.0

internal import SystemPackage

extension AIOError: CustomStringConvertible {
  /// One sentence: the operation, what went wrong, how many bytes were transferred before, and
  /// where it helps what to do.
  public var description: String {
    let sentence =
      switch detail {
      case .errno: errnoSentence
      case .text(let text): text
      case .misaligned(let what, let needed):
        """
        \(what) is not a multiple of \(needed), which the file needs for direct I/O; \
        align it (AIOFile.alignment), use read(_:from:count:) or write(_:contentsOf:at:), which take \
        any range, or open the file with caching: .buffered
        """
      case .full(let limit):
        """
        all \(limit) requests that the context has room for are in use, or tasks wait for the next \
        that is free; try again when one has completed, or make the context with a larger \
        pendingLimit
        """
      case .contextLimit(let asked, let inUse, let maximum):
        """
        the machine's AIO requests are used up: fs.aio-max-nr is \(words(maximum)), \
        \(words(inUse)) are in use (fs.aio-nr), \(asked) were asked for; \
        raise it with `sysctl -w fs.aio-max-nr=\(suggestion(asked, inUse))`, ask for a smaller \
        queueDepth, or close contexts that are not needed
        """
      }
    let part = transferred > 0 ? "after \(transferred) bytes, " : ""
    return "\(subjectWords): \(part)\(sentence)"
  }

  private var errnoSentence: String {
    guard let errno else { return code.description }
    return "\(errno) (errno \(errno.rawValue))" + (recoverySuggestion.map { "; \($0)" } ?? "")
  }

  /// Advice on the errno that the kernel answered, which is a part of ``description``; `nil` if the
  /// library has none, or refused without asking the kernel.
  ///
  /// After a failed sync it says that data written since the last sync that succeeded may be lost
  /// and has to be written again: the kernel reports a failed write-back once, and counts the pages
  /// as clean from then on.
  public var recoverySuggestion: String? {
    guard case .errno = detail else { return nil }
    if isLostWriteback { return lostWritebackSuggestion }
    switch code {
    case .noSpace: return "free some space, then submit again"
    case .fileSizeLimit:
      return "the file would pass RLIMIT_FSIZE (`ulimit -f`) or what its filesystem can hold"
    case .device: return "the device failed; see the kernel log"
    case .notSupported where operation != .fsync && operation != .fdatasync:
      return "the kernel or the file system does not have it for this file"
    case .directUnsupported: return "open it with caching: .buffered"
    case .system where errno == .noMemory && length != nil:
      return "memory is used up, or limited (`ulimit -v`, a container's); ask for less at a time"
    case .descriptorLimit:
      return "close files that are not needed, or raise the limit (`ulimit -n`, or fs.file-max)"
    default: return nil
    }
  }

  /// Whether the error is that of a sync whose write-back failed, so that data may be lost. Any
  /// errno says so, except those that the kernel answers before it tries; to a durable write, those
  /// that a write-back answers.
  private var isLostWriteback: Bool {
    guard let errno else { return false }
    if isDurable { return [.ioError, .noSpace, .diskQuotaExceeded].contains(errno) }
    guard operation == .fsync || operation == .fdatasync else { return false }
    let untried: [Errno] = [
      .badFileDescriptor, .invalidArgument, .noFunction, .notSupported, .notSupportedOnSocket,
      .interrupted, .resourceTemporarilyUnavailable, .canceled, .noMemory,
    ]
    return !untried.contains(errno)
  }

  /// The advice after a failed sync.
  private var lostWritebackSuggestion: String {
    let first =
      switch code {
      case .noSpace: "free some space, and "
      case .device: "see the kernel log for the device, and "
      default: ""
      }
    return """
      what was written since the last sync that succeeded may be gone: \(first)write it again \
      before the next sync; to sync again proves nothing, as the kernel reports the loss only once
      """
  }

  /// "write of 4096 bytes at offset 8192 of /var/log/journal"
  private var subjectWords: String {
    var words = operation.description
    if let length { words += " of \(length) bytes" }
    if let offset { words += " at offset \(offset)" }
    if let name = fileWords { words += " of \(name)" }
    return words
  }

  private var fileWords: String? {
    if let file { return file.isEmpty ? "\"\"" : file.string }
    return descriptor.map { "file descriptor \($0)" }
  }

  private func words(_ number: Int?) -> String { number.map(String.init) ?? "unknown" }

  /// A power of two with at least twice the room that is needed.
  private func suggestion(_ asked: Int, _ inUse: Int?) -> Int {
    // In a sandbox, /proc may say any number.
    let needed = asked.addingReportingOverflow(inUse ?? 0).partialValue
    var round = 65536
    while round < 1 << 40, round < needed.multipliedReportingOverflow(by: 2).partialValue {
      round *= 2
    }
    return round
  }
}

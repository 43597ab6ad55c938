// SPDX-License-Identifier: Apache-2.0

internal import SystemPackage

extension AIOError: CustomStringConvertible {
  /// One sentence: what was tried, what went wrong, and where it helps what to do.
  public var description: String {
    let sentence =
      switch detail {
      case .errno: errnoSentence
      case .text(let text): text
      case .misaligned(let what, let needed):
        """
        \(what) is not a multiple of \(needed), which the file needs for direct I/O; \
        align it (AIOFile.alignment), or open the file with caching: .buffered
        """
      case .full(let limit):
        """
        all \(limit) requests that the context has room for are in use; try again when one has \
        completed, or make the context with a larger pendingLimit
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
    return "\(errno) (errno \(errno.rawValue))" + (cure.map { "; \($0)" } ?? "")
  }

  /// What to do about it, where the library knows.
  private var cure: String? {
    switch code {
    case .noSpace: "free some space, then submit again"
    case .fileSizeLimit:
      "the file would pass RLIMIT_FSIZE (`ulimit -f`) or what its filesystem can hold"
    case .device: "the device failed; see the kernel log"
    case .directUnsupported: "open it with caching: .buffered"
    default: nil
    }
  }

  /// "write of 4096 bytes at offset 8192 of /var/log/journal"
  private var subjectWords: String {
    var words = operation.description
    if let length, offset != nil { words += " of \(length) bytes" }
    if let offset { words += " at offset \(offset)" }
    if let name = fileWords { words += " of \(name)" }
    return words
  }

  private var fileWords: String? {
    if let file { return file.isEmpty ? "\"\"" : file.string }
    return descriptor.map { "file descriptor \($0)" }
  }

  private func words(_ number: Int?) -> String { number.map(String.init) ?? "unknown" }

  /// A round number with room for what was asked, twice what is needed.
  private func suggestion(_ asked: Int, _ inUse: Int?) -> Int {
    var round = 65536
    while round < 2 * (asked + (inUse ?? 0)) { round *= 2 }
    return round
  }
}

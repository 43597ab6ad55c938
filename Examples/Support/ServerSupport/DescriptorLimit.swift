// SPDX-License-Identifier: Apache-2.0

import Glibc
import Logging
import SystemPackage

/// The limit of this process's descriptors (`ulimit -n`), which connections share with all else.
public enum DescriptorLimit {
  /// The descriptors that connections leave to everything else: the log, segments, contexts,
  /// timers, and those that are refused and have to be accepted for that.
  static let reserve = 64

  /// Raises the soft limit as far as is needed and may be, and caps a server's number of
  /// connections by it.
  ///
  /// - Parameters:
  ///   - connections: the most connections that were asked for.
  ///   - files: the descriptors that a connection may take for its files, as long as it is
  ///     answered. Where there are not enough for all of them, connections leave a quarter to
  ///     files, for which answers then have to wait.
  ///   - others: the descriptors that the server has besides, where they are many.
  /// - Returns: the most connections that there can be, with a warning if that is less.
  public static func cap(
    connections: Int, files: Int = 0, others: Int = 0, logger: Logger
  ) throws -> Int {
    let resource = __rlimit_resource_t(RLIMIT_NOFILE.rawValue)
    var limit = rlimit()
    guard getrlimit(resource, &limit) == 0 else {
      throw Failure("getrlimit: \(Errno(rawValue: errno))")
    }
    let kept = others + reserve
    // No higher than what is needed: the kernel's tables grow with it.
    let needed = rlim_t(connections * (1 + files) + kept)
    if limit.rlim_cur < needed, limit.rlim_cur < limit.rlim_max {
      var raised = limit
      raised.rlim_cur = min(needed, limit.rlim_max)
      if setrlimit(resource, &raised) == 0 { limit = raised }
    }
    let free = Int(clamping: limit.rlim_cur) - kept
    let room = files > 0 ? free / 4 * 3 : free
    guard room > 0 else {
      throw Failure(
        """
        only \(limit.rlim_cur) files may be open (`ulimit -n`), and \(kept) are needed besides the \
        connections; raise the limit
        """)
    }
    guard room < connections else { return connections }
    logger.warning(
      """
      --max-connections \(connections): at most \(room), because only \(limit.rlim_cur) files may \
      be open (`ulimit -Hn`, or LimitNOFILE= of systemd)
      """)
    return room
  }
}

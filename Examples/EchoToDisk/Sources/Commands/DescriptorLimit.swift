// SPDX-License-Identifier: Apache-2.0

import Glibc
import Logging
import ServerSupport
import SystemPackage

/// The process's limit on open files, which the connections share with the journal.
enum DescriptorLimit {
  /// The descriptors that are kept for what is not a connection: the standard streams, the loop,
  /// the listening socket, the journal's segments and the making of the next one.
  static let reserve = 64

  /// Raises the limit as far as the process may.
  ///
  /// - Returns: how many connections there may be: `wanted`, or fewer, of which a warning tells.
  static func connections(_ wanted: Int, _ logger: Logger) throws -> Int {
    var limit = rlimit()
    guard getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0 else {
      throw Failure("getrlimit: \(Errno(rawValue: errno))")
    }
    // No higher than what is needed: the kernel's tables grow with it.
    let needed = rlim_t(wanted + reserve)
    if limit.rlim_cur < needed, limit.rlim_cur < limit.rlim_max {
      var raised = limit
      raised.rlim_cur = min(needed, limit.rlim_max)
      if setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &raised) == 0 { limit = raised }
    }
    let room = Int(clamping: limit.rlim_cur) - reserve
    guard room > 0 else {
      throw Failure(
        """
        only \(limit.rlim_cur) files may be open (`ulimit -n`), and the journal needs \(reserve) \
        besides the connections; raise the limit
        """)
    }
    guard room < wanted else { return wanted }
    logger.warning(
      """
      --max-connections \(wanted): at most \(room), because only \(limit.rlim_cur) files may be \
      open (`ulimit -n`)
      """)
    return room
  }
}

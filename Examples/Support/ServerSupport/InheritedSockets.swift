// SPDX-License-Identifier: Apache-2.0
//
// Sockets that the program which started the server has made for it: systemd, or inetd.

import Glibc
import SystemPackage

extension Listener {
  /// The listening sockets that systemd has passed to this process: descriptors from 3 on, as many
  /// as `LISTEN_FDS` says, if `LISTEN_PID` is this process (see sd_listen_fds(3)). Empty otherwise.
  ///
  /// Call it before there are other threads, because it removes those variables.
  public static func fromEnvironment() throws(ListenError) -> [Listener] {
    guard let process = getenv("LISTEN_PID"), let count = getenv("LISTEN_FDS"),
      Int32(String(cString: process)) == getpid()
    else { return [] }
    let text = String(cString: count)
    for name in ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"] { unsetenv(name) }
    guard let count = Int32(text), (0...1024).contains(count) else {
      throw ListenError(description: "LISTEN_FDS is '\(text)': it is to be a number")
    }
    var listeners: [Listener] = []
    for descriptor in 3..<3 + count { listeners.append(try Listener(adopting: descriptor)) }
    return listeners
  }

  /// Adopts a connected socket, as inetd passes it.
  ///
  /// - Returns: a non-blocking descriptor of the same socket, which the caller closes.
  public static func adoptConnection(_ descriptor: Int32) throws(ListenError) -> Int32 {
    var type: Int32 = 0
    var length = socklen_t(MemoryLayout<Int32>.size)
    guard getsockopt(descriptor, SOL_SOCKET, SO_TYPE, &type, &length) == 0,
      type == Int32(SOCK_STREAM.rawValue)
    else { throw ListenError(description: "descriptor \(descriptor) is no connected socket") }
    let socket = fcntl(descriptor, F_DUPFD_CLOEXEC, 3)
    guard socket >= 0 else {
      throw ListenError(description: "descriptor \(descriptor): \(Errno(rawValue: errno))")
    }
    _ = fcntl(socket, F_SETFL, fcntl(socket, F_GETFL) | O_NONBLOCK)
    // Has no effect on sockets other than TCP.
    setUpConnection(socket)
    return socket
  }
}

// SPDX-License-Identifier: Apache-2.0

import Glibc

/// Ends the sending side of a socket.
///
/// A server that shuts down calls this until it returns `true`, and only then closes: to close a
/// socket that has unread bytes resets the connection, which discards what is still being sent.
///
/// - Returns: whether the peer has acknowledged all that was sent.
public func endSending(on socket: Int32) -> Bool {
  shutdown(socket, Int32(SHUT_WR))
  var unacknowledged: Int32 = 0
  return ioctl(socket, UInt(TIOCOUTQ), &unacknowledged) != 0 || unacknowledged == 0
}

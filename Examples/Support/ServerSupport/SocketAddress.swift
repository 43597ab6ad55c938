// SPDX-License-Identifier: Apache-2.0

import Glibc

/// A socket's address as text: `127.0.0.1:7777`, `[::1]:7777`, or a path.
struct SocketAddress: CustomStringConvertible {
  let description: String
  let isInternet: Bool

  init(_ address: sockaddr_storage, _ length: socklen_t) {
    var address = address
    switch Int32(address.ss_family) {
    case AF_INET, AF_INET6:
      var host = [CChar](repeating: 0, count: Int(NI_MAXHOST))
      var port = [CChar](repeating: 0, count: Int(NI_MAXSERV))
      let answer = withUnsafePointer(to: &address) {
        $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
          getnameinfo(
            $0, length, &host, socklen_t(host.count), &port, socklen_t(port.count),
            NI_NUMERICHOST | NI_NUMERICSERV)
        }
      }
      isInternet = true
      guard answer == 0 else {
        description = "unknown"
        return
      }
      let (hostName, portName) = (Self.string(host), Self.string(port))
      description =
        hostName.contains(":") ? "[\(hostName)]:\(portName)" : "\(hostName):\(portName)"
    case AF_UNIX:
      isInternet = false
      let path = withUnsafeBytes(of: &address) { bytes in
        RawArgument.text(
          of: bytes[MemoryLayout<sa_family_t>.size..<max(2, min(Int(length), bytes.count))]
            .prefix { $0 != 0 }
        ).escaped  // the client chose it
      }
      description = path.isEmpty ? "unix" : path
    default:
      isInternet = false
      description = "unknown"
    }
  }

  init(localOf socket: Int32) {
    var address = sockaddr_storage()
    var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
    _ = withUnsafeMutablePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { getsockname(socket, $0, &length) }
    }
    self.init(address, length)
  }

  private static func string(_ characters: [CChar]) -> String {
    String(decoding: characters.prefix { $0 != 0 }.map(UInt8.init(bitPattern:)), as: UTF8.self)
  }
}

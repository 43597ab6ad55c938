import DispatchAIO
@preconcurrency import Foundation
import SystemPackage

if CommandLine.arguments.count != 2 { fatalError("usage: one-queue FILE") }
setvbuf(stdout, nil, _IOLBF, 0)  // each line at once, into a pipe or a file, too
let loop = DispatchQueue(label: "loop")  // serves a timer, a socket and a file
let context = try AIOContext(queueDepth: 64, queue: loop)
let file = try AIOFile.open(FilePath(CommandLine.arguments[1]), .readOnly)
nonisolated(unsafe) var served = 0  // touched on `loop` only
let timer = try context.makeTimerSource()
timer.schedule(deadline: .now() + 1, repeating: 1)
timer.setEventHandler { print("\(served) blocks served") }
timer.activate()
func with<T>(_ peer: inout sockaddr_in, _ body: (UnsafeMutablePointer<sockaddr>) -> T) -> T {
  withUnsafeMutablePointer(to: &peer) { $0.withMemoryRebound(to: sockaddr.self, capacity: 1, body) }
}
var address = sockaddr_in()
(address.sin_family, address.sin_port) = (sa_family_t(AF_INET), UInt16(7007).bigEndian)
address.sin_addr.s_addr = inet_addr("127.0.0.1")
let socket = Glibc.socket(AF_INET, Int32(SOCK_DGRAM.rawValue), 0)
guard with(&address, { bind(socket, $0, 16) }) == 0 else { fatalError("port 7007 is taken") }
let datagrams = try context.makeReadSource(fileDescriptor: socket)
datagrams.setEventHandler {  // a datagram with a block's number gets the block
  var (peer, length, text) = (sockaddr_in(), socklen_t(16), [CChar](repeating: 0, count: 32))
  _ = with(&peer) { recvfrom(socket, &text, 31, 0, $0, &length) }
  do {
    let (buffer, client) = (AIOBuffer(count: 4096), peer)
    try context.read(file, at: Int64(atoi(text)) * 4096, into: buffer) { result in
      guard case .success(let count) = result else { return print(result) }  // on `loop`
      var peer = client
      buffer.withUnsafeBytes { bytes in
        _ = with(&peer) { sendto(socket, bytes.baseAddress, count, 0, $0, 16) }
      }
      served += 1
    }
  } catch { print(error) }
}
datagrams.activate()
dispatchMain()

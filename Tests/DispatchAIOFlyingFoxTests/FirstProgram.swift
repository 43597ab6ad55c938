// SPDX-License-Identifier: Apache-2.0

#if FlyingFox
import DispatchAIOFlyingFox
import FlyingFox

func serve(_ path: String, port: UInt16) async throws {
  let context = try AIOContext()
  let root = try AIODirectory.open(.init(path))
  let server = HTTPServer(
    address: .loopback(port: port), pool: AIOSocketPool(context),
    handler: AIODirectoryHTTPHandler(root, context: context))
  try await server.run()
}
#endif

// SPDX-License-Identifier: Apache-2.0

#if ServiceLifecycle
import DispatchAIOServiceLifecycle
import Logging
import ServiceLifecycle

func serve(_ makeServer: (AIOContext) -> any Service) async throws {
  let context = try AIOContext()
  let group = ServiceGroup(
    services: [AIOContextService(context), makeServer(context)],
    gracefulShutdownSignals: [.sigterm, .sigint], logger: Logger(label: "server"))
  try await group.run()
}
#endif

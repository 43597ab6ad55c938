// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import Dispatch

extension ParsableCommand {
  /// Runs a task on Swift's own threads, with the main thread left to Dispatch, and ends the
  /// process with it.
  func runTask(_ body: @escaping @Sendable () async throws -> Void) -> Never {
    Task {
      do { try await body() } catch { Self.exit(withError: error) }
      Self.exit()
    }
    dispatchMain()
  }
}

// SPDX-License-Identifier: Apache-2.0

#if Metrics
import DispatchAIOMetrics
import Foundation
import SystemPackage

/// A new file on a real file system, removed with the value.
final class TemporaryFile: Sendable {
  let path: FilePath
  let file: AIOFile

  init(caching: AIOFile.Caching = .buffered) throws {
    let parent = ProcessInfo.processInfo.environment["TMPDIR"] ?? "/var/tmp"
    path = FilePath("\(parent)/dispatch-aio-\(UUID().uuidString)")
    file = try AIOFile.open(path, .readWrite, options: .create, caching: caching)
  }

  deinit { try? FileManager.default.removeItem(atPath: path.string) }
}
#endif

// SPDX-License-Identifier: Apache-2.0

#if NIO
import DispatchAIONIO
import NIOCore
import _NIOFileSystem

func countLines(_ path: FilePath) async throws -> Int {
  let files = AIOFileSystem(try AIOContext())
  return try await files.withFileHandle(forReadingAt: path) { file in
    var lines = 0
    for try await chunk in file.readChunks() {
      lines += chunk.readableBytesView.count { $0 == UInt8(ascii: "\n") }
    }
    return lines
  }
}
#endif

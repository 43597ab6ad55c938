// SPDX-License-Identifier: Apache-2.0

import SystemPackage

extension FileDescriptor {
  /// Writes a line at once, so that it is seen without delay where standard output is a pipe.
  public func write(line: String) {
    _ = try? writeAll((line + "\n").utf8)
  }
}

// SPDX-License-Identifier: Apache-2.0

import Logging
import SystemPackage

extension FileDescriptor {
  /// Writes to standard error. If that fails, nobody is left to tell.
  public static func writeError(_ text: String) {
    _ = try? standardError.writeAll(text.utf8)
  }

  /// Writes a line at once, so that it is seen without delay where standard output is a pipe.
  public func write(line: String) throws(Errno) {
    do {
      try writeAll((line + "\n").utf8)
    } catch let errno as Errno {
      throw errno
    } catch {
      throw .ioError  // not reached: `writeAll` throws nothing else
    }
  }

  /// Writes a server's line, and warns if it cannot. A standard output that is closed was closed on
  /// purpose, and is no reason to warn.
  public func announce(_ line: String, logger: Logger) {
    do throws(Errno) {
      try write(line: line)
    } catch {
      guard error != .badFileDescriptor else { return }
      logger.warning("standard output: \(error); it was to say: \(line)")
    }
  }
}

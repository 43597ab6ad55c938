// SPDX-License-Identifier: Apache-2.0

import ServerSupport
import SystemPackage

/// Writes a line to standard output.
///
/// - Throws: a `Failure` where it cannot be written: a full disk must not look like success.
func printLine(_ line: String) throws {
  do throws(Errno) {
    try FileDescriptor.standardOutput.write(line: line)
  } catch {
    throw Failure("standard output: \(error)")
  }
}

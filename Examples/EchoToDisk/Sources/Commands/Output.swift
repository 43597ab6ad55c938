// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import Glibc
import ServerSupport
import SystemPackage

/// Writes a line to standard output.
///
/// - Throws: what ``writingOutput(_:)`` throws.
func printLine(_ line: String) throws {
  try writingOutput { try FileDescriptor.standardOutput.write(line: line) }
}

/// Writes to standard output.
///
/// - Throws: a `Failure` where that fails: a full disk must not look like success. Where the reader
///   of a pipe has gone, which has seen enough, only the status of a death by SIGPIPE.
func writingOutput(_ body: () throws -> Void) throws {
  do {
    try body()
  } catch Errno.brokenPipe {
    throw ExitCode(128 + SIGPIPE)
  } catch {
    throw Failure("standard output: \(error)")
  }
}

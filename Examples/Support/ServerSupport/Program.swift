// SPDX-License-Identifier: Apache-2.0
//
// What every program here does before anything else, and at its end.

import ArgumentParser
// `stdout` is a C global, which nothing here assigns.
@preconcurrency import Glibc
import SystemPackage

/// The start and the end of a program.
public enum Program {
  /// Runs a command with the process's arguments, and ends the process.
  ///
  /// - Closed standard descriptors are opened first, on `/dev/null`.
  /// - SIGPIPE is ignored, so that a reader that is gone is an error of the write; SIGUSR1 and
  ///   SIGUSR2 are ignored, because they would end the process without its cleaning up.
  /// - Arguments that are not UTF-8 are kept (``RawArgument``).
  /// - What reports to swift-metrics is in `/metrics`, with the trait Metrics.
  /// - What could not be written to standard output is an error, `--help` included. A reader of a
  ///   pipe that is gone ends the program quietly, with the status of a death by SIGPIPE.
  public static func run<Command: ParsableCommand>(_: Command.Type) -> Never {
    openStandardDescriptors()
    for number in [SIGPIPE, SIGUSR1, SIGUSR2] { signal(number, SIG_IGN) }
    bootstrapMetrics()
    var status = ExitCode.success.rawValue
    do {
      var command = try Command.parseAsRoot(RawArgument.ofProcess())
      try command.run()
    } catch {
      status = report(error, of: Command.self)
    }
    if let errno = flushOutput() {
      if errno == .brokenPipe { exit(128 + SIGPIPE) }
      FileDescriptor.writeError("Error: standard output: \(errno)\n")
      exit(status == 0 ? ExitCode.failure.rawValue : status)
    }
    exit(status)
  }

  /// Opens `/dev/null` for those of the descriptors 0, 1 and 2 that are closed. The next file to be
  /// opened, a journal or a socket, would otherwise get the log, or be read as input.
  ///
  /// Each is opened for the opposite of its use, so that to use it is an error (EBADF), as it was
  /// while it was closed.
  static func openStandardDescriptors() {
    for descriptor in STDIN_FILENO...STDERR_FILENO where fcntl(descriptor, F_GETFD) < 0 {
      let opened = open("/dev/null", descriptor == STDIN_FILENO ? O_WRONLY : O_RDONLY)
      // Without it nothing is safe to open, and nobody can be told.
      guard opened == descriptor else { exit(ExitCode.failure.rawValue) }
    }
  }

  /// Prints what is to be said of an error, which is none for `--help` and its like.
  ///
  /// - Returns: the exit status.
  private static func report<Command: ParsableCommand>(
    _ error: any Error, of _: Command.Type
  ) -> Int32 {
    let code = Command.exitCode(for: error)
    let text = Command.fullMessage(for: error)
    if text.isEmpty { return code.rawValue }
    if code.isSuccess {
      print(text)
    } else {
      // The lines of a message on usage are the parser's; in all others a line feed is a name's.
      FileDescriptor.writeError(text.escaped(keepsLines: code == .validationFailure) + "\n")
    }
    return code.rawValue
  }

  /// - Returns: the errno of the first failure since the process began, as far as it is known.
  private static func flushOutput() -> Errno? {
    let hasFailed = ferror(stdout) != 0
    if fflush(stdout) != 0 { return Errno(rawValue: errno) }
    return hasFailed ? .ioError : nil
  }
}

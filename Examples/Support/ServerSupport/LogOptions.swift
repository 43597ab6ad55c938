// SPDX-License-Identifier: Apache-2.0

import ArgumentParser
import Logging

/// The option `--log-level` of the servers, and the logger that follows it.
public struct LogOptions: ParsableArguments {
  public enum Level: String, ExpressibleByArgument, CaseIterable, Sendable {
    case trace, debug, info, notice, warning, error, critical
  }

  @Option(help: ArgumentHelp("What to log.", valueName: "level"))
  public var logLevel = Level.info

  public init() {}

  /// A logger that writes to standard error; see ``RateLimitedLogHandler``.
  public func makeLogger(_ label: String) -> Logger {
    var logger = Logger(label: label) {
      RateLimitedLogHandler(StreamLogHandler.standardError(label: $0))
    }
    logger.logLevel = Logger.Level(rawValue: logLevel.rawValue) ?? .info
    return logger
  }
}

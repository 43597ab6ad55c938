// SPDX-License-Identifier: Apache-2.0

import Foundation
import SystemPackage
import XCTest

/// What the programs have in common: standard descriptors, signals, output, the log, descriptors,
/// names. As processes.
final class ProgramTests: XCTestCase {
  /// A daemon and what it was started with. It ends with the value, if not before.
  private final class Daemon {
    let process: Process
    let log: FilePath
    let directory: TemporaryDirectory

    init(process: Process, log: FilePath, directory: TemporaryDirectory) {
      (self.process, self.log, self.directory) = (process, log, directory)
    }

    deinit {
      if process.isRunning { _ = end(SIGKILL) }
    }

    var id: Int32 { process.processIdentifier }
    var logged: String { (try? String(contentsOfFile: log.string, encoding: .utf8)) ?? "" }
    var descriptors: [String] {
      (0...2).map {
        (try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/\(id)/fd/\($0)")) ?? ""
      }
    }
    func client() throws -> EchoClient {
      try EchoClient(unix: directory.path.appending("socket").string)
    }
    func end(_ signal: Int32 = SIGTERM) -> Int32 {
      kill(id, signal)
      process.waitForEnd()
      return process.terminationReason == .exit ? process.terminationStatus : -1
    }
  }

  private static let daemons = ["echo-to-disk", "aio-nbd", "aio-httpd"]
  /// What a client says to get the first byte of an answer; aio-nbd speaks first.
  private static let greetings = [
    "echo-to-disk": [7], "aio-nbd": [],
    "aio-httpd": Array("GET / HTTP/1.1\r\nHost: a\r\n\r\n".utf8),
  ]

  /// Starts a daemon on a Unix socket named `socket`, by a line of the shell that runs `"$@"`, and
  /// waits until it takes connections.
  private func start(
    _ name: String, _ options: [String] = [], by line: String = "exec \"$@\" 2>log"
  ) throws -> Daemon {
    let directory = try temporaryDirectory()
    XCTAssertTrue(
      FileManager.default.createFile(
        atPath: directory.path.appending("disk").string, contents: Data(count: 1 << 20)))
    let arguments =
      switch name {
      case "aio-nbd": ["serve", "disk"]
      case "aio-httpd": ["."]
      default: ["serve", "--data", "data", "--segment-size", "1M"]
      }
    let process = Process()
    process.executableURL = URL(fileURLWithPath: "/bin/sh")
    process.currentDirectoryURL = URL(fileURLWithPath: directory.path.string)
    process.arguments =
      ["-c", line, "sh", try ChildProcess.built(name)] + arguments
      + ["--unix", "socket"] + options
    process.standardInput = FileHandle.nullDevice
    process.standardOutput = FileHandle(
      forWritingAtPath: directory.path.appending("disk").string)
    try process.run()
    let daemon = Daemon(
      process: process, log: directory.path.appending("log"), directory: directory)
    // The signals are handled when it says so; where it cannot say so, soon after it listens.
    let output = directory.path.appending("disk").string
    let isReady = eventually {
      !process.isRunning
        || (try? Data(contentsOf: URL(fileURLWithPath: output)).starts(with: Data("listening".utf8)))
          ?? false
        || line.contains(">&-") && (try? daemon.client()) != nil
    }
    guard isReady, process.isRunning else {
      throw EchoServer.Failure(description: "no daemon: \(daemon.logged)")
    }
    return daemon
  }

  // MARK: Standard descriptors

  /// Closed ones are /dev/null before anything else is opened.
  func testClosedStandardDescriptors() throws {
    for name in Self.daemons {
      for line in ["exec \"$@\" <&- >&- 2>&-", "exec \"$@\" >&- 2>log", "exec \"$@\" <&- 2>log"] {
        let daemon = try start(name, by: line)
        let closed = daemon.descriptors.filter { $0 == "/dev/null" }
        XCTAssertTrue(
          daemon.descriptors.allSatisfy {
            $0 == "/dev/null" || $0.hasSuffix("/log") || $0.hasSuffix("/disk")
          }, "\(name), \(line): \(daemon.descriptors)")
        XCTAssertFalse(closed.isEmpty)
        let files = ["data/lock", "disk"].map { daemon.directory.path.appending($0).string }
        // It cannot say when it handles signals.
        if line.contains(">&-") { _ = daemon.end(SIGKILL) } else { XCTAssertEqual(daemon.end(), 0) }
        for file in files where access(file, F_OK) == 0 && !line.contains("<&- 2>log") {
          let text = try String(
            decoding: Data(contentsOf: URL(fileURLWithPath: file)), as: UTF8.self)
          XCTAssertFalse(text.contains("listening"), "\(name), \(line), \(file)")
        }
      }
    }
  }

  // MARK: Output

  private func shell(_ line: String, _ directory: TemporaryDirectory) throws -> ChildProcess {
    try ChildProcess.run(
      "/bin/sh",
      [
        "-c",
        "trap '[ -z \"$daemon\" ] || kill -9 $daemon 2>&-' EXIT; cd \"$directory\" || exit\n\(line)",
      ],
      environment: [
        "echo": ChildProcess.built("echo-to-disk"), "nbd": ChildProcess.built("aio-nbd"),
        "copy": ChildProcess.built("aio-copy"), "httpd": ChildProcess.built("aio-httpd"),
        "directory": directory.path.string,
      ])
  }

  func testOutputThatCannotBeWritten() throws {
    let directory = try temporaryDirectory()
    let server = try EchoServer(directory.path.appending("data"), ["--segment-size", "1M"])
    XCTAssertTrue(try EchoClient(port: server.port).exchange([1, 2, 3], until: 3))
    XCTAssertEqual(server.stop(), 0)
    let commands = [
      "\"$echo\" list data", "\"$echo\" list data --json", "\"$echo\" verify data",
      "\"$echo\" replay data --connection 1", "\"$echo\" trim data --before 1",
      "\"$echo\" --help", "\"$nbd\" --help", "\"$copy\" --help", "\"$nbd\" --version",
      "\"$httpd\" --help",
    ]
    for command in commands {
      let full = try shell("\(command) >/dev/full", directory)
      XCTAssertEqual(full.status, 1, command)
      XCTAssertEqual(full.errors, "Error: standard output: No space left on device\n", command)
      let closed = try shell("\(command) >&-", directory)
      XCTAssertEqual(closed.status, 1, command)
      XCTAssertEqual(closed.errors, "Error: standard output: Bad file descriptor\n", command)
      XCTAssertEqual(try shell("\(command) >/dev/null", directory).status, 0, command)
    }
    // A reader that has seen enough is no error to speak of, and no success.
    for command in commands {
      let pipe = try shell(
        "mkfifo gone; : <gone & exec 3>gone; wait $!; rm gone; \(command) >&3; echo $? >&2",
        directory)
      XCTAssertEqual(pipe.errors, "141\n", command)
    }
  }

  func testADaemonSaysWhatItCouldNotSay() throws {
    let directory = try temporaryDirectory()
    let run = try shell(
      """
      "$echo" serve --data data --unix socket >/dev/full 2>log & daemon=$!
      until grep -q 'standard output' log; do kill -0 $daemon || exit 9; done
      kill $daemon && wait $daemon && cat log
      """, directory)
    XCTAssertEqual(run.status, 0)
    XCTAssertTrue(run.output.contains("No space left on device"), run.output)
  }

  /// The reader of an access log on standard output leaves after the first line.
  func testAnAccessLogWhoseReaderHasGone() throws {
    let directory = try temporaryDirectory()
    let curl = try ChildProcess.installed("curl", package: "curl")
    let run = try shell(
      """
      mkfifo pipe; head -n 1 pipe >out &
      "$httpd" . --unix socket --access-log - >pipe 2>log & daemon=$!
      until grep -q listening out; do kill -0 $daemon || exit 9; done
      until grep -q 'access log' log; do \(curl) -sf --unix-socket socket http://a/ >/dev/null || exit 8; done
      kill $daemon && wait $daemon && cat log
      """, directory)
    XCTAssertEqual(run.status, 0)
    XCTAssertTrue(
      run.output.contains("lacks answers: standard output: Broken pipe"), run.output)
  }

  // MARK: Signals

  func testSignals() throws {
    for name in Self.daemons {
      for signal in [SIGTERM, SIGINT, SIGQUIT, SIGHUP] {
        let daemon = try start(name)
        // Ignored.
        for ignored in [SIGUSR1, SIGUSR2, SIGPIPE] { kill(daemon.id, ignored) }
        _ = try daemon.client()
        XCTAssertEqual(daemon.end(signal), 0, "\(name), \(signal): \(daemon.logged)")
        XCTAssertTrue(daemon.logged.contains("done"), daemon.logged)
      }
      // As nohup starts it.
      let daemon = try start(name, by: "trap '' HUP; exec \"$@\" 2>log")
      kill(daemon.id, SIGHUP)
      _ = try daemon.client()
      XCTAssertEqual(daemon.end(), 0)
      XCTAssertFalse(daemon.logged.contains("SIGHUP"), daemon.logged)
    }
  }

  /// The first waits for a client that takes no answer; the second does not.
  func testASecondSignalEndsAtOnce() throws {
    for (second, code) in [(SIGTERM, Int32(143)), (SIGINT, 130)] {
      let daemon = try start("echo-to-disk", ["--drain-timeout", "1000"])
      let client = try daemon.client()
      XCTAssertGreaterThan(client.sendUntilStuck(randomBytes(8 << 20), patience: 0.5), 0)
      kill(daemon.id, SIGTERM)
      XCTAssertTrue(eventually { daemon.logged.contains("finishing what is in flight") })
      // A terminal that is closed says so to everybody, and more than once.
      kill(daemon.id, SIGHUP)
      // The same one counts after a tenth of a second.
      XCTAssertTrue(
        eventually {
          kill(daemon.id, second)
          return !daemon.process.isRunning
        })
      XCTAssertEqual(daemon.process.terminationStatus, code)
    }
    let daemon = try start("aio-nbd")
    let client = try NBDClient(
      connect: daemon.directory.path.appending("socket").string)
    // Stopped, so that both are there before either is handled.
    kill(daemon.id, SIGSTOP)
    kill(daemon.id, SIGTERM)
    kill(daemon.id, SIGINT)
    kill(daemon.id, SIGCONT)
    daemon.process.waitForEnd()
    XCTAssertTrue([143, 130].contains(daemon.process.terminationStatus))
    withExtendedLifetime(client) {}
  }

  /// `timeout(1)` signals the program, and then its process group: the program ends as after one.
  func testASignalThatIsSentTwice() throws {
    for name in Self.daemons {
      for signal in ["TERM", "INT"] {
        let daemon = try start(
          name, by: "exec timeout --preserve-status -s \(signal) 1000 \"$@\" 2>log")
        kill(daemon.id, SIGTERM)
        daemon.process.waitForEnd()
        XCTAssertEqual(daemon.process.terminationStatus, 0, "\(name): \(daemon.logged)")
        XCTAssertTrue(daemon.logged.contains("done"), daemon.logged)
      }
    }
  }

  /// The log's reader dies, and the daemon has something to say.
  func testADeadLogPipe() throws {
    for name in Self.daemons {
      // `true` is at its end at once; the shell keeps no end of the pipe that it could be read at.
      let daemon = try start(
        name, ["--max-connections", "1"],
        by: "mkfifo pipe; : <pipe & exec \"$@\" 2>pipe")
      let first = try daemon.client()
      for _ in 0..<5 {
        let refused = try daemon.client()
        XCTAssertTrue(
          eventually {
            refused.exchange([], until: 1 << 20, seconds: 1)
            return refused.isClosed
          })
      }
      XCTAssertTrue(daemon.process.isRunning, "\(name) died of its log")
      withExtendedLifetime(first) {}
      XCTAssertEqual(daemon.end(), 0)
    }
  }

  // MARK: The log

  /// Clients that are refused do not fill the log, and what they choose works no terminal.
  func testClientsCannotFillTheLog() throws {
    for name in Self.daemons {
      let daemon = try start(name, ["--max-connections", "1"])
      let first = try daemon.client()
      for _ in 0..<1000 { _ = try daemon.client() }
      let last = try daemon.client()
      XCTAssertTrue(
        eventually {
          last.exchange([], until: 1 << 20, seconds: 1)
          return last.isClosed
        })
      withExtendedLifetime(first) {}
      XCTAssertEqual(daemon.end(), 0)
      let lines = daemon.logged.split(separator: "\n").filter { $0.contains("refused unix") }
      XCTAssertGreaterThan(lines.count, 1)
      XCTAssertLessThan(lines.count, 120, "\(name): \(lines.count) lines")
      XCTAssertTrue(daemon.logged.contains(" more of these in the last "), daemon.logged)
      XCTAssertTrue(daemon.logged.contains("1001 refused"), "the count is not lost")
    }
  }

  func testNamesInTheLogAreEscaped() throws {
    let directory = try temporaryDirectory()
    let run = try shell(
      #"""
      truncate -s 1M disk; name=$(printf 'a\033[31m\nb')
      "$nbd" "$name=disk" --unix "$(printf 's\033\377')" >out 2>log & daemon=$!
      until grep -q listening out; do kill -0 $daemon || break; done
      kill $daemon; wait $daemon; cat out log
      "$nbd" "$(printf 'no\033[31m')" --port 0 2>&1
      "$echo" serve --data "disk/$(printf 'no\033')" --port 0 2>&1
      "$echo" list "$(printf 'no\033')" 2>&1; true
      """#, directory)
    XCTAssertTrue(run.output.contains("listening on s\\u{1B}\\xFF"), run.output)
    XCTAssertTrue(run.output.contains("'a\\u{1B}[31m\\nb'"), run.output)
    XCTAssertFalse(run.output.contains("\u{1B}"), run.output)
  }

  // MARK: Descriptors

  /// More clients than descriptors: those that there is room for are served, the others are told,
  /// and when they have gone, so are new ones.
  func testMoreClientsThanDescriptors() throws {
    for name in Self.daemons {
      // Connections of aio-httpd leave some to files.
      let (limit, options) = name == "aio-httpd" ? (120, ["--open-files", "0"]) : (104, [])
      let daemon = try start(name, options, by: "ulimit -n \(limit); exec \"$@\" 2>log")
      XCTAssertTrue(daemon.logged.contains("--max-connections"), daemon.logged)
      XCTAssertTrue(daemon.logged.contains("only \(limit) files may be open"), daemon.logged)
      var clients = try (0..<100).map { _ in try daemon.client() }
      let greeting = Self.greetings[name] ?? []
      let isServed = { (client: EchoClient) in client.exchange(greeting, until: 1, seconds: 20) }
      XCTAssertTrue(isServed(clients[0]))
      XCTAssertFalse(isServed(clients[99]))
      XCTAssertTrue(clients[99].isClosed)
      let served = clients.count { isServed($0) }
      XCTAssertTrue((8...40).contains(served), "\(name): \(served)")
      clients = []
      XCTAssertTrue(eventually { (try? daemon.client()).map(isServed) ?? false }, "deaf")
      XCTAssertEqual(daemon.end(), 0)
    }
  }

  /// None left at all, as when the system's table is full: clients wait until there are some, and
  /// those that are there already are served meanwhile.
  func testNoDescriptorsForAWhile() throws {
    let prlimit = try ChildProcess.installed("prlimit", package: "util-linux")
    for name in Self.daemons {
      let daemon = try start(name)
      func limit(_ number: Int) throws {
        let run = try ChildProcess.run(prlimit, ["--pid", "\(daemon.id)", "--nofile=\(number):"])
        try XCTSkipIf(run.status != 0, run.errors)
      }
      let greeting = Self.greetings[name] ?? []
      let earlier = try daemon.client()
      XCTAssertTrue(earlier.exchange(greeting, until: 1, seconds: 20))
      try limit(3)
      let client = try daemon.client()
      XCTAssertTrue(eventually { daemon.logged.contains("cannot accept a connection") })
      XCTAssertFalse(client.exchange([], until: 1, seconds: 0.5))
      XCTAssertFalse(client.isClosed, "\(name) closed a client that it could have served")
      if name != "aio-nbd" {
        XCTAssertTrue(earlier.exchange(greeting, until: earlier.received.count + 1, seconds: 20))
      }
      // Often, so that one that ends between two attempts is found as well.
      for number in [64, 3, 64, 3, 64] { try limit(number) }
      XCTAssertTrue(client.exchange(greeting, until: 1, seconds: 20), "\(name) is deaf")
      XCTAssertFalse(earlier.isClosed, "\(name) closed a client that it had served")
      XCTAssertEqual(daemon.end(), 0)
    }
  }

  func testTheSoftLimitIsRaised() throws {
    for name in Self.daemons {
      let daemon = try start(name, by: "ulimit -Sn 64; exec \"$@\" 2>log")
      let limits = try String(contentsOfFile: "/proc/\(daemon.id)/limits", encoding: .utf8)
      let line = try XCTUnwrap(
        limits.split(separator: "\n").first { $0.hasPrefix("Max open files") })
      let numbers = line.split(separator: " ").compactMap { Int($0) }
      XCTAssertGreaterThan(numbers[0], 300)
      XCTAssertFalse(daemon.logged.contains("--max-connections"), daemon.logged)
      XCTAssertEqual(daemon.end(), 0)
    }
  }

  // MARK: Names that are not UTF-8

  func testNamesThatAreNotText() throws {
    let directory = try temporaryDirectory()
    let run = try shell(
      #"""
      file=$(printf 'f\377') && truncate -s 1M "$file" &&
      { "$nbd" "$file" --port 0; test $? = 64; } &&
      { "$nbd" "x=$file" --unix "$(printf 's\377')" >out 2>log & daemon=$!
        until test -s out; do kill -0 $daemon || break; done
        test -S "$(printf 's\377')" && kill $daemon && wait $daemon; } &&
      test ! -e "$(printf 's\377')" && rm out log "$file" && ls -A
      """#, directory)
    XCTAssertEqual(run.status, 0, run.errors)
    XCTAssertEqual(run.output, "")
    XCTAssertTrue(run.errors.contains("'f\\xFF': an export's name is UTF-8"), run.errors)
  }

  func testAJournalWhoseNameIsNotText() throws {
    let directory = try temporaryDirectory()
    let run = try shell(
      #"""
      data=$(printf 'd\377')
      "$echo" serve --data "$data" --unix "$(printf 's\376')" >out 2>log & daemon=$!
      until test -s out; do kill -0 $daemon || break; done
      test -S "$(printf 's\376')" && kill $daemon && wait $daemon && rm out log &&
      "$echo" verify "$data" && test -d "$data" && rm -r "$data" && ls -A
      """#, directory)
    XCTAssertEqual(run.status, 0, run.errors)
    XCTAssertTrue(run.output.contains("0 damages"), run.output)
    XCTAssertEqual(run.output.split(separator: "\n").count, 1, run.output)
  }
}

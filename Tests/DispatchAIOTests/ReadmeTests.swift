// SPDX-License-Identifier: Apache-2.0

import Foundation
import XCTest

/// Whether the READMEs, of the package and of each example, are true: programs, commands, options,
/// paths.
final class ReadmeTests: XCTestCase {
  private static let package = URL(fileURLWithPath: #filePath)
    .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()

  private static let catalog = "Sources/DispatchAIO/DispatchAIO.docc"

  private func text(_ path: String) throws -> String {
    try String(contentsOf: Self.package.appendingPathComponent(path), encoding: .utf8)
  }

  /// The programs in the README and in the catalog are the ones that are compiled, and as short as
  /// they are said to be.
  func testTheProgramsAreThoseThatAreCompiled() throws {
    for (name, lines, page) in [
      ("FirstWrite", 17, "README.md"), ("FirstWrite", 17, "\(Self.catalog)/DispatchAIO.md"),
      ("OneQueue", 40, "\(Self.catalog)/SocketsTimersAndFiles.md"),
    ] {
      let program = try text("Examples/\(name)/main.swift")
      XCTAssertLessThanOrEqual(program.count { $0 == "\n" }, lines)
      XCTAssertTrue(try text(page).contains("```swift\n\(program)```"), "\(name) in \(page)")
    }
  }

  /// So are the first programs of the plugs, by the tests of each plug.
  func testThePlugsProgramsAreThoseThatAreCompiled() throws {
    for plug in ["FlyingFox", "Hummingbird", "Metrics", "NIO", "ServiceLifecycle"] {
      let lines = try text("Tests/DispatchAIO\(plug)Tests/FirstProgram.swift")
        .split(separator: "\n", omittingEmptySubsequences: false)
      let first = try XCTUnwrap(lines.firstIndex(of: "#if \(plug)")) + 1
      let end = try XCTUnwrap(lines.firstIndex(of: "#endif"))
      XCTAssertLessThanOrEqual(end - first, 15, plug)
      let program = lines[first..<end].joined(separator: "\n")
      for page in [
        "\(Self.catalog)/Plugs.md",
        "Sources/DispatchAIO\(plug)/DispatchAIO\(plug).docc/DispatchAIO\(plug).md",
      ] {
        XCTAssertTrue(try text(page).contains("```swift\n\(program)\n```"), "\(plug) in \(page)")
      }
    }
  }

  /// So are the five lines that copy a file.
  func testTheCopyIsTheOneThatIsTested() throws {
    let readme = try text("\(Self.catalog)/SwiftConcurrency.md")
    let start = try XCTUnwrap(readme.range(of: "var writer = AIOFileWriter"))
    let end = try XCTUnwrap(readme[start.lowerBound...].range(of: "```"))
    let lines = readme[start.lowerBound..<end.lowerBound].split(separator: "\n")
    XCTAssertEqual(lines.count, 5)
    let tests = try text("Tests/DispatchAIOTests/Concurrency/ChunkTests.swift")
    XCTAssertTrue(
      tests.contains(lines.map { "    \($0)\n" }.joined()), "the copy in the catalog is another")
  }

  // MARK: The examples' READMEs

  /// The READMEs, by their folder.
  private static let readmes = [
    "README.md", "Examples/EchoToDisk/README.md", "Examples/BlockServer/README.md",
    "Examples/CopyFile/README.md", "Examples/FileServer/README.md",
    "Examples/Benchmark/README.md",
    "Examples/FirstWrite/README.md", "Examples/OneQueue/README.md",
    "Examples/HummingbirdFiles/README.md",
  ]

  /// Each command whose options a README has a table of, in the order of the tables.
  private static let commands = [
    ("Examples/EchoToDisk/README.md", ["serve", "list", "replay", "verify", "trim"]),
    ("Examples/BlockServer/README.md", ["serve"]),
    ("Examples/CopyFile/README.md", [""]),
    ("Examples/FileServer/README.md", [""]),
    (
      "Examples/Benchmark/README.md",
      [
        "compare", "run", "stall", "thresholds", "neighbours", "wakeup", "serve", "plugged", "draw",
      ]
    ),
  ]
  private static let programs = [
    "Examples/EchoToDisk/README.md": "echo-to-disk", "Examples/BlockServer/README.md": "aio-nbd",
    "Examples/CopyFile/README.md": "aio-copy", "Examples/FileServer/README.md": "aio-httpd",
    "Examples/Benchmark/README.md": "aio-bench",
  ]

  /// Every folder of an example has its README, and this file knows it.
  func testEachExampleHasAReadme() throws {
    let examples = Self.package.appendingPathComponent("Examples")
    for name in try FileManager.default.contentsOfDirectory(atPath: examples.path)
    where name != "Support" && !name.hasPrefix(".") {
      XCTAssertTrue(Self.readmes.contains("Examples/\(name)/README.md"), name)
      XCTAssertTrue(
        try text("README.md").contains("(Examples/\(name)/README.md)"),
        "the README has no link to \(name)")
    }
  }

  /// The tables of options are what `--help` says, word for word.
  func testTheOptionsAreThoseOfTheHelp() throws {
    var checked = 0
    for (readme, commands) in Self.commands {
      let program = try XCTUnwrap(Self.programs[readme])
      let path = program == "aio-bench" ? try Self.benchmark() : try ChildProcess.built(program)
      let tables = try tables(in: readme)
      XCTAssertEqual(tables.count, commands.count, readme)
      guard let path else {
        XCTAssertNil(
          ProcessInfo.processInfo.environment["AIO_REQUIRE_BENCH"],
          "aio-bench has not been built since it was changed")
        continue
      }
      for (command, table) in zip(commands, tables) {
        let run = try ChildProcess.run(
          path, [command, "--help"].filter { !$0.isEmpty }, environment: ["COLUMNS": "80"])
        let help = Self.options(ofHelp: run.output)
        XCTAssertGreaterThan(help.count, 0, run.errors)
        XCTAssertEqual(table, help, "\(readme): \(command)")
        checked += table.count
      }
    }
    XCTAssertGreaterThan(checked, 30)
  }

  /// Every command in a shell block runs a program that exists, with options that it has.
  func testTheCommandsExist() throws {
    let manifest = try text("Package.swift")
    var options: [String: Set<String>] = [:]
    for (readme, commands) in Self.commands {
      let program = try XCTUnwrap(Self.programs[readme])
      for (command, table) in zip(commands, try tables(in: readme)) {
        let names = table.flatMap { row in
          row.split(separator: "`")[1].split(whereSeparator: { " /".contains($0) }).map(String.init)
        }
        options["\(program) \(command)", default: []].formUnion(names)
      }
    }
    // The default commands, and what every program has.
    options["echo-to-disk "] = options["echo-to-disk serve"]
    options["aio-nbd "] = options["aio-nbd serve"]
    options["aio-bench "] = []
    var checked = 0
    for readme in Self.readmes {
      for command in try commands(in: readme) {
        var words = command.split(separator: " ").map(String.init)
        guard words.starts(with: ["swift", "run"]) else { continue }
        words.removeFirst(2)
        // The options of `swift run` itself.
        while let word = words.first, word.hasPrefix("-") {
          words.removeFirst(["-c", "--package-path", "--traits"].contains(word) ? 2 : 1)
        }
        let program = words.removeFirst()
        XCTAssertTrue(
          manifest.contains("\"\(program)\"") || program == "aio-bench", "\(readme): \(command)")
        let subcommand = words.first.flatMap { options["\(program) \($0)"] == nil ? nil : $0 } ?? ""
        // What is quoted is another program's.
        for word in words where word.hasPrefix("--") && word != "--help" {
          let known = options["\(program) \(subcommand)"] ?? []
          XCTAssertTrue(known.contains(word), "\(readme): \(command): no option \(word)")
          checked += 1
        }
        checked += 1
      }
    }
    XCTAssertGreaterThan(checked, 20)
  }

  /// So are those in a sentence, which nobody can try without the options that have to be there.
  func testTheCommandsInSentencesExist() throws {
    let benchmark = "Examples/Benchmark/README.md"
    let names = try XCTUnwrap(Self.commands.first { $0.0 == benchmark }).1
    let options = Dictionary(
      uniqueKeysWithValues: zip(
        names,
        try tables(in: benchmark).map { table in
          Set(
            table.flatMap { row in
              row.split(separator: "`")[1].split(whereSeparator: { " /".contains($0) })
                .map(String.init)
            })
        }))
    var checked = 0
    for page in try Self.readmes + pages() {
      for match in try text(page).matches(of: /`aio-bench ([^`]*)`/) {
        let words = match.1.split(whereSeparator: \.isWhitespace).map(String.init)
        // Of a build with another trait.
        guard let known = options[words[0]] else {
          XCTAssertEqual(words[0], "flyingfox-pools", page)
          continue
        }
        let given = words.filter { $0.hasPrefix("--") }
        for option in given {
          XCTAssertTrue(known.contains(option), "\(page): \(match.0): no option \(option)")
        }
        if !given.isEmpty, ["compare", "run", "stall"].contains(words[0]) {
          XCTAssertTrue(given.contains("--file"), "\(page): \(match.0): without --file")
        }
        checked += 1
      }
    }
    XCTAssertGreaterThan(checked, 20)
  }

  /// The pages of the catalog.
  private func pages() throws -> [String] {
    let folder = Self.package.appendingPathComponent(Self.catalog).path
    return try FileManager.default.subpathsOfDirectory(atPath: folder)
      .filter { $0.hasSuffix(".md") }.map { "\(Self.catalog)/\($0)" }
  }

  /// A filter of tests that matches nothing passes, and says nothing.
  func testTheFiltersMatchTests() throws {
    let tests = try FileManager.default.subpathsOfDirectory(
      atPath: Self.package.appendingPathComponent("Tests").path)
    let others = [".github/CONTRIBUTING.md", ".ci/run", ".ci/power-cuts"]
    var checked = 0
    for page in try Self.readmes + pages() + others {
      for match in try text(page).matches(of: /--(?:filter|skip) ([A-Z][A-Za-z]*)/) {
        XCTAssertTrue(
          tests.contains { $0.contains(match.1) }, "\(page): \(match.0): there is no such test")
        checked += 1
      }
    }
    XCTAssertGreaterThan(checked, 10)
  }

  /// The files, folders and pages that are named exist.
  func testTheFilesThatAreNamedExist() throws {
    var checked = 0
    for readme in Self.readmes {
      let text = try text(readme)
      let folder = Self.package.appendingPathComponent(readme).deletingLastPathComponent()
      var paths: [String] = []
      for match in text.matches(of: /\]\(([^):]+)\)/) {
        paths.append(String(match.1.split(separator: "#").first ?? ""))
      }
      for match in text.matches(of: /`((?:Examples|Sources|Tests|\.ci)\/[^` ]+)/) {
        paths.append(String(match.1))
      }
      for path in paths where !path.isEmpty {
        let isThere = [folder, Self.package].contains {
          FileManager.default.fileExists(atPath: $0.appendingPathComponent(path).path)
        }
        XCTAssertTrue(isThere, "\(readme): \(path)")
        checked += 1
      }
    }
    XCTAssertGreaterThan(checked, 20)
  }

  /// The rows of each table of options.
  private func tables(in readme: String) throws -> [[String]] {
    try text(readme).components(separatedBy: "| option | |\n| --- | --- |\n").dropFirst().map {
      $0.split(separator: "\n", omittingEmptySubsequences: false).prefix { $0.hasPrefix("|") }
        .map(String.init)
    }
  }

  /// The commands in the shell blocks: one a line, without prompts, comments and what they print.
  private func commands(in readme: String) throws -> [String] {
    try text(readme).components(separatedBy: "```sh\n").dropFirst().flatMap { block in
      block.components(separatedBy: "```")[0].replacingOccurrences(of: "\\\n", with: " ")
        .split(separator: "\n")
        .flatMap { $0.components(separatedBy: " #")[0].components(separatedBy: "&& ") }
        .map {
          // What a quoted argument says is not this command's.
          $0.replacing(/"[^"]*"/, with: "ARGUMENT").trimmingCharacters(in: .whitespaces)
        }
    }
  }

  /// The arguments and options of a help text, as rows of a table.
  private static func options(ofHelp help: String) -> [String] {
    var rows: [(name: String, text: String)] = []
    var isOptions = false
    for line in help.split(separator: "\n", omittingEmptySubsequences: false) {
      if let heading = line.wholeMatch(of: /([A-Z]+):.*/) {
        isOptions = heading.1 == "ARGUMENTS" || heading.1 == "OPTIONS"
      } else if !isOptions {
        continue
      } else if let option = line.wholeMatch(
        of: /\ \ (<[^>]+>|-h, --help|--[a-z\/-]+(?: <[^>]+>)?) *(.*)/)
      {
        rows.append((String(option.1), String(option.2)))
      } else if line.hasPrefix("      "), let last = rows.indices.last {
        rows[last].text += " " + line.trimmingCharacters(in: .whitespaces)
      }
    }
    return rows.filter { $0.name != "--version" && $0.name != "-h, --help" }.map {
      "| `\($0.name)` | \($0.text.trimmingCharacters(in: .whitespaces)) |"
    }
  }

  /// The benchmark, which is a package of its own; `nil` if it has not been built since it was
  /// changed.
  private static func benchmark() throws -> String? {
    let folder = package.appendingPathComponent("Examples/Benchmark")
    let program = folder.appendingPathComponent(".build/release/aio-bench").path
    func changed(_ path: String) -> Date? {
      let attributes = try? FileManager.default.attributesOfItem(atPath: path)
      return attributes?[.modificationDate] as? Date
    }
    guard let built = changed(URL(fileURLWithPath: program).resolvingSymlinksInPath().path) else {
      return nil
    }
    let sources = folder.appendingPathComponent("Sources").path
    let isOld = FileManager.default.enumerator(atPath: sources)?.contains {
      changed("\(sources)/\($0)") ?? .distantPast > built
    }
    return isOld == false ? program : nil
  }

  // MARK: The programs at the beginning

  func testTheFirstProgramWorks() throws {
    let directory = try temporaryDirectory()
    let run = try ChildProcess.run(
      "/bin/sh",
      ["-c", "cd \(directory.path) && exec \(ChildProcess.built("first-write"))"])
    XCTAssertEqual(run.output, "written: success(4096)\ndurable: success(0)\n", run.errors)
    XCTAssertEqual(run.status, 0)
    XCTAssertEqual(
      try directory.contents("first-write.data"), [UInt8](repeating: 0, count: 4096))
  }

  func testTheProgramSaysWhatItNeeds() throws {
    let run = try ChildProcess.run(ChildProcess.built("one-queue"), [])
    XCTAssertTrue(run.errors.contains("usage: one-queue FILE"), run.errors)
  }

  /// A datagram, a timer and a file on one queue.
  func testTheProgramWorks() throws {
    let directory = try temporaryDirectory()
    let file = try directory.makeFile(size: 3 * 4096) { UInt8($0 / 4096 + 1) }
    let process = Process()
    process.executableURL = URL(fileURLWithPath: try ChildProcess.built("one-queue"))
    process.arguments = [file.string]
    let output = Pipe()
    process.standardOutput = output
    process.standardError = FileHandle.nullDevice
    try process.run()
    defer {
      kill(process.processIdentifier, SIGKILL)
      process.waitUntilExit()
    }
    let socket = socket(AF_INET, Int32(SOCK_DGRAM.rawValue), 0)
    defer { close(socket) }
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_port = UInt16(7007).bigEndian
    address.sin_addr.s_addr = UInt32(0x7f00_0001).bigEndian
    withUnsafePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        _ = connect(socket, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
      }
    }
    var block = [UInt8](repeating: 0, count: 8192)
    for number in [2, 0, 1] {
      // Until the program has begun to listen, a datagram is refused.
      var count = -1
      XCTAssertTrue(
        eventually {
          send(socket, "\(number)\n", 2, 0)
          var poll = pollfd(fd: socket, events: Int16(POLLIN), revents: 0)
          guard Glibc.poll(&poll, 1, 1000) == 1 else { return false }
          count = recv(socket, &block, block.count, 0)
          return count > 0
        })
      XCTAssertEqual(count, 4096)
      XCTAssertEqual(Array(block[..<4096]), [UInt8](repeating: UInt8(number + 1), count: 4096))
    }
    // The timer's line is in the pipe at once.
    var poll = pollfd(
      fd: output.fileHandleForReading.fileDescriptor, events: Int16(POLLIN), revents: 0)
    XCTAssertEqual(Glibc.poll(&poll, 1, 10_000), 1)
  }
}

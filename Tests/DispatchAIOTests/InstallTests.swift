// SPDX-License-Identifier: Apache-2.0

import Foundation
import XCTest

/// What `.ci/install` asks of each package manager, with managers that only write down their
/// arguments.
final class InstallTests: XCTestCase {
  private static let managers = [
    "apt-get": "env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y libaio-dev libxxhash-dev",
    "dnf": "dnf install -q -y libaio-devel xxhash-devel",
    "apk": "apk add -q libaio-dev xxhash-dev",
    "pacman": "pacman -S --noconfirm --needed libaio xxhash",
    "zypper": "zypper --quiet --non-interactive install libaio-devel xxhash-devel",
  ]

  /// Where nothing is installed, everything is, by the manager that the machine has.
  func testEveryManagerIsAskedForWhatIsMissing() throws {
    for (manager, command) in Self.managers {
      let run = try Machine(manager: manager, hasPackages: false).install()
      XCTAssertEqual(run.child.status, 0, "\(manager): \(run.child.errors)")
      XCTAssertEqual(run.log.last, command, manager)
    }
  }

  /// Where everything is installed, no manager is asked to install.
  func testNothingIsInstalledTwice() throws {
    for manager in Self.managers.keys {
      let run = try Machine(manager: manager, hasPackages: true).install("tests")
      XCTAssertEqual(run.child.status, 0, "\(manager): \(run.child.errors)")
      XCTAssertFalse(run.log.contains { $0.contains("install") || $0.contains(" add ") }, manager)
      XCTAssertFalse(run.log.contains { $0.contains(" -S ") }, manager)
    }
  }

  /// The tests' packages have a name by every manager.
  func testTheTestsPackagesHaveNames() throws {
    for manager in Self.managers.keys {
      let run = try Machine(manager: manager, hasPackages: false).install("tests")
      let packages = try XCTUnwrap(run.log.last).split(separator: " ")
      XCTAssertTrue(packages.contains("strace") && packages.contains("fio"), manager)
      XCTAssertFalse(packages.contains("-"), manager)
      XCTAssertGreaterThan(packages.count, 20, manager)
    }
  }

  /// Where there is none of them, the script says what is needed.
  func testAMachineWithoutAManagerIsToldWhatIsNeeded() throws {
    let run = try Machine(manager: nil, hasPackages: false).install()
    XCTAssertEqual(run.child.status, 1)
    XCTAssertTrue(run.child.errors.contains("libaio-dev libxxhash-dev"), run.child.errors)
  }

  /// A failure of the manager is one of the script.
  func testAFailureIsReported() throws {
    let run = try Machine(manager: "dnf", hasPackages: false, fails: true).install()
    XCTAssertNotEqual(run.child.status, 0)
  }
}

/// A machine with the few programs that the script uses, and a package manager of the test's.
private struct Machine {
  private let directory: TemporaryDirectory

  init(manager: String?, hasPackages: Bool, fails: Bool = false) throws {
    directory = try TemporaryDirectory()
    for tool in ["sh", "awk", "grep", "id", "dirname"] {
      try FileManager.default.createSymbolicLink(
        atPath: directory.path.appending(tool).string,
        withDestinationPath: ChildProcess.installed(tool, package: "coreutils"))
    }
    let log = directory.path.appending("log").string
    // `sudo` and `env` are as good as what they run.
    let record = "#!/bin/sh\necho \"$(basename \"$0\") $*\" >>\(log)\n"
      .replacingOccurrences(of: "$(basename \"$0\")", with: "${0##*/}")
    for name in ["sudo", "env"] + [manager].compactMap({ $0 }) {
      let answers = manager == "apk" || manager == "pacman"
      let query =
        answers ? "case $1 in info|-Q) exit \(hasPackages ? 0 : 1);; esac\n" : ""
      let rest = name == "sudo" ? "exec \"$@\"\n" : "exit \(fails ? 1 : 0)\n"
      try write(name, record + query + rest)
    }
    try write("rpm", "#!/bin/sh\nexit \(hasPackages ? 0 : 1)\n")
    try write("dpkg-query", "#!/bin/sh\necho \(hasPackages ? "install ok installed" : "no")\n")
  }

  private func write(_ name: String, _ script: String) throws {
    let path = directory.path.appending(name).string
    try script.write(toFile: path, atomically: true, encoding: .utf8)
    try FileManager.default.setAttributes([.posixPermissions: 0o755], ofItemAtPath: path)
  }

  /// Runs the script, and tells what the managers were asked.
  func install(_ arguments: String...) throws -> (child: ChildProcess, log: [String]) {
    let child = try ChildProcess.run(
      directory.path.appending("sh").string,
      [Compiler.package.appendingPathComponent(".ci/install").path] + arguments,
      environment: ["PATH": directory.path.string])
    let log = try? String(contentsOfFile: directory.path.appending("log").string, encoding: .utf8)
    return (child, (log ?? "").split(separator: "\n").map(String.init))
  }
}

// SPDX-License-Identifier: Apache-2.0

import Foundation
import XCTest

/// The Swift compiler, which sees the library that the tests were built with.
enum Compiler {
  /// The package's folder.
  static let package = URL(fileURLWithPath: #filePath)
    .appendingPathComponent("../../../..").standardized

  /// Compiles files together, and throws the result away.
  ///
  /// - Parameter arguments: Further arguments of the compiler.
  /// - Returns: The lines with errors and warnings; none only if it compiles.
  static func diagnostics(
    _ files: [String], arguments: [String] = ["-emit-sil", "-o", "/dev/null"]
  ) throws -> [String] {
    // Beside the tests there are the modules they were built with.
    let products = URL(fileURLWithPath: "/proc/self/exe").resolvingSymlinksInPath()
      .deletingLastPathComponent()
    let scratch = products.deletingLastPathComponent().deletingLastPathComponent()
    let maps = [
      package.appendingPathComponent("Sources/CLibAIO/module.modulemap"),
      scratch.appendingPathComponent(
        "checkouts/swift-system/Sources/CSystem/include/module.modulemap"),
      products.appendingPathComponent("CKernel.build/module.modulemap"),
    ]
    for file in maps where !FileManager.default.fileExists(atPath: file.path) {
      throw XCTSkip("\(file.path) is not there: built in another way than by SwiftPM")
    }
    let run = try ChildProcess.run(
      ChildProcess.installed("swiftc", package: "swift"),
      arguments + ["-swift-version", "6", "-I", products.appendingPathComponent("Modules").path]
        + maps.flatMap { ["-Xcc", "-fmodule-map-file=\($0.path)"] } + files,
      seconds: 300)
    let lines = run.errors.split(separator: "\n").filter {
      $0.contains("error:") || $0.contains("warning:")
    }.map(String.init)
    // One that crashed, or was killed, has compiled nothing.
    guard run.status != 0, !lines.contains(where: { $0.contains("error:") }) else { return lines }
    return lines + ["error: swiftc ended with \(run.status): \(run.errors.suffix(2000))"]
  }
}

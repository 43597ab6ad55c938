// SPDX-License-Identifier: Apache-2.0

import Foundation
import XCTest

/// Whether the code in the documentation compiles, without a warning, with the library as it is.
///
/// A block of Swift that begins with an import is a program; one of declarations is put into a
/// file, and one of statements into a function. A comment before it declares what it is given:
/// `<!-- given context: AIOContext, file: AIOFile -->`.
final class DocumentationTests: XCTestCase {
  private static let catalog = Compiler.package.appendingPathComponent(
    "Sources/DispatchAIO/DispatchAIO.docc")

  /// A block of code, and where it stands.
  private struct Block {
    let page: String
    let line: Int
    let given: String
    let code: String

    /// Whether it is a program of its own.
    var isProgram: Bool { code.hasPrefix("import ") }

    /// The block as a part of a program; its lines keep their numbers within the block.
    var part: String {
      let imports = "import Dispatch; import DispatchAIO; import Glibc; import SystemPackage; "
      let isDeclaration = ["actor ", "struct ", "final class ", "func "].contains {
        code.hasPrefix($0)
      }
      return isDeclaration
        ? "\(imports) enum Block\(line) { \(code)\n}"
        : "\(imports) private func block(\(given)) async throws { \(code)\n}"
    }
  }

  private static func pages() throws -> [URL] {
    let enumerator = try XCTUnwrap(
      FileManager.default.enumerator(at: catalog, includingPropertiesForKeys: nil))
    return enumerator.compactMap { $0 as? URL }.filter { $0.pathExtension == "md" }
      .sorted { $0.path < $1.path } + [Compiler.package.appendingPathComponent("README.md")]
  }

  private static func blocks(of page: URL) throws -> [Block] {
    let lines = try String(contentsOf: page, encoding: .utf8)
      .split(separator: "\n", omittingEmptySubsequences: false)
    var blocks: [Block] = []
    var start: Int?
    var given = ""
    for (number, line) in lines.enumerated() {
      if let comment = line.wholeMatch(of: /<!-- given (.*) -->/) {
        given = String(comment.1)
      } else if line == "```swift" {
        start = number + 1
      } else if line == "```", let first = start {
        blocks.append(
          Block(
            page: page.lastPathComponent, line: first, given: given,
            code: lines[first..<number].joined(separator: "\n")))
        start = nil
        given = ""
      }
    }
    return blocks
  }

  func testTheCodeCompiles() throws {
    try XCTSkipIf(Sanitizer.isBuiltIn, "the same without a sanitizer")
    let directory = try TemporaryDirectory()
    // The plugs' programs are compiled by the tests of each, and compared by ReadmeTests.
    let blocks = try Self.pages().filter { $0.lastPathComponent != "Plugs.md" }
      .flatMap(Self.blocks)
    XCTAssertGreaterThan(blocks.count { !$0.isProgram }, 15)
    var parts: [String] = []
    for block in blocks {
      let name = "\(block.page.dropLast(3))-line\(block.line).swift"
      let path = directory.path.appending(name).string
      let text = block.isProgram ? block.code : block.part
      try text.write(toFile: path, atomically: false, encoding: .utf8)
      if block.isProgram {
        XCTAssertEqual(try Compiler.diagnostics([path]), [], name)
      } else {
        parts.append(path)
      }
    }
    XCTAssertEqual(
      try Compiler.diagnostics(parts, arguments: ["-typecheck", "-parse-as-library"]), [])
  }
}

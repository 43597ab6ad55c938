// SPDX-License-Identifier: Apache-2.0

import Foundation
import XCTest

/// The kernel's completion ring, which is read in user space, on other machines than this one.
final class ArchitectureTests: XCTestCase {
  private static let sources = Compiler.package.appendingPathComponent("Sources/CKernel")
  private static let check = Compiler.package.appendingPathComponent("Tests/RingCheck/main.c")

  private func clang(_ arguments: [String]) throws -> ChildProcess {
    try ChildProcess.run(ChildProcess.installed("clang", package: "clang"), arguments)
  }

  func testTheRingIsReadAsItWasWritten() throws {
    let run = try ChildProcess.run(ChildProcess.built("ring-check"), [])
    XCTAssertEqual(run.status, 0, run.output)
  }

  /// A layout that is not known is refused when the package is compiled.
  func test32BitAndBigEndianMachinesAreRefused() throws {
    for (target, isRefused) in [
      ("i686-linux-gnu", true), ("armv7-linux-gnueabihf", true), ("powerpc64-linux-gnu", true),
      ("s390x-linux-gnu", true), ("x86_64-linux-gnu", false), ("aarch64-linux-gnu", false),
      ("riscv64-linux-gnu", false),
    ] {
      let header = Self.sources.appendingPathComponent("include/CKernel.h").path
      let run = try clang(["--target=\(target)", "-E", "-x", "c", header, "-o", "/dev/null"])
      XCTAssertEqual(run.errors.contains("64-bit little-endian"), isRefused, target)
    }
  }

  /// On a machine whose memory orders are weak, the tail is read with acquire semantics, and the
  /// head written with release; and the same program reads the ring there, under an emulator.
  func testTheRingOnARM() throws {
    try XCTSkipIf(Sanitizer.isBuiltIn, "the same without a sanitizer")
    let gcc = try ChildProcess.installed("aarch64-linux-gnu-gcc", package: "gcc-aarch64-linux-gnu")
    let qemu = try ChildProcess.installed("qemu-aarch64", package: "qemu-user")
    let directory = try TemporaryDirectory()
    let program = directory.path.appending("ring-check").string
    var objects: [String] = []
    for source in try FileManager.default.contentsOfDirectory(atPath: Self.sources.path)
    where source.hasSuffix(".c") {
      let object = directory.path.appending(source + ".o").string
      let compiled = try clang([
        "--target=aarch64-linux-gnu", "--sysroot=/usr/aarch64-linux-gnu", "-O2", "-Wall", "-Werror",
        "-I", Self.sources.appendingPathComponent("include").path, "-isystem",
        "/usr/aarch64-linux-gnu/include", "-c", Self.sources.appendingPathComponent(source).path,
        "-o", object,
      ])
      XCTAssertEqual(compiled.status, 0, compiled.errors)
      objects.append(object)
    }
    let linked = try ChildProcess.run(
      gcc,
      [
        "-O2", "-static", "-pthread", "-I", Self.sources.appendingPathComponent("include").path,
        Self.check.path, "-o", program,
      ] + objects)
    XCTAssertEqual(linked.status, 0, linked.errors)
    let run = try ChildProcess.run(qemu, [program], seconds: 120)
    XCTAssertEqual(run.status, 0, run.output + run.errors)
    let code = try ChildProcess.run(
      ChildProcess.installed("llvm-objdump", package: "llvm"),
      ["--disassemble-symbols=ckernel_aio_ring_reap", program]
    ).output
    XCTAssertNotNil(code.firstMatch(of: #/\b(ldar|ldapr)\s/#), code)
    XCTAssertNotNil(code.firstMatch(of: #/\bstlr\s/#), code)
  }
}

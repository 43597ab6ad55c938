// SPDX-License-Identifier: Apache-2.0

import XCTest

@testable import DispatchAIO

/// Skips a test of what only kernel AIO has, where the environment chose threads instead
/// (`.ci/threads-only`).
///
/// - Parameter reason: What the test asserts, as the end of a sentence: "without kernel AIO …".
func requireKernelAIO(_ reason: String) throws {
  try XCTSkipIf(KernelChoice.ofProcess == .threads, "without kernel AIO \(reason)")
}

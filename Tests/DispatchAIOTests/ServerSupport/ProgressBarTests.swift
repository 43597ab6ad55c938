// SPDX-License-Identifier: Apache-2.0

import XCTest

@testable import ServerSupport

/// The line on a terminal.
final class ProgressBarTests: XCTestCase {
  /// Whatever is done of whatever there is: the total of a sparse file is its room on disk, and a
  /// file may be read twice.
  func testAnyProgressHasALine() {
    for (done, total, line) in [
      (0, 100, "[--------------------] 0%  0B of 100B  0 MiB/s"),
      (50, 100, "[##########----------] 50%  50B of 100B  0 MiB/s  0:02 left"),
      (100, 100, "[####################] 100%  100B of 100B  0 MiB/s  0:00 left"),
      (200, 100, "[####################] 100%  100B of 100B  0 MiB/s  0:00 left"),
      (-5, 100, "[--------------------] 0%  0B of 100B  0 MiB/s"),
      (0, 0, "[####################] 100%  0B of 0B  0 MiB/s"),
      (7, 0, "[####################] 100%  0B of 0B  0 MiB/s"),
    ] {
      XCTAssertEqual(ProgressBar.line("", done, of: total, seconds: 2), line)
    }
    // Of what is one call, nobody knows how far it is.
    XCTAssertEqual(ProgressBar.line("syncing", 100, of: nil, seconds: 62), "syncing  1:02")
  }
}

// SPDX-License-Identifier: Apache-2.0

#if Hummingbird
import DispatchAIO
import Hummingbird
import SystemPackage
import XCTest

@testable import DispatchAIOHummingbird

final class ErrorTests: XCTestCase {
  /// Only what is the path's fault is not found; what fails is the server's fault.
  func testWhatIsNotFound() throws {
    // The errno, whether a file that is read is not found, and the status when it is stored.
    let expected: [(Errno, Bool, Int?)] = [
      (.noSuchFileOrDirectory, true, 404), (.notDirectory, true, 404),
      (.tooManySymbolicLinkLevels, true, 404), (.fileNameTooLong, true, 404),
      (.improperLink, true, 404), (.permissionDenied, true, 403), (.isDirectory, false, 409),
      (.tooManyOpenFiles, false, 503), (.noSpace, false, 507), (.ioError, false, nil),
      (.noFunction, false, nil), (.noMemory, false, nil),
    ]
    for (errno, namesNoFile, status) in expected {
      let error = AIOError(errno, .open, path: "file")
      XCTAssertEqual(error.namesNoFile, namesNoFile, "\(error)")
      XCTAssertEqual((error.forHTTP as? HTTPError)?.status.code, status, "\(error)")
    }
  }
}
#endif

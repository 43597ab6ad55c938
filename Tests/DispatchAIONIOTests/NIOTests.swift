// SPDX-License-Identifier: Apache-2.0

#if NIO
import DispatchAIONIO
import XCTest

final class NIOTests: XCTestCase {}
#endif

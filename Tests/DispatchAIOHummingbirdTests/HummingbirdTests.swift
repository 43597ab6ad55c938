// SPDX-License-Identifier: Apache-2.0

#if Hummingbird
import DispatchAIOHummingbird
import XCTest

final class HummingbirdTests: XCTestCase {}
#endif

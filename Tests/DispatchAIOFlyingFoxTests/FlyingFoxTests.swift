// SPDX-License-Identifier: Apache-2.0

#if FlyingFox
import DispatchAIOFlyingFox
import XCTest

final class FlyingFoxTests: XCTestCase {}
#endif

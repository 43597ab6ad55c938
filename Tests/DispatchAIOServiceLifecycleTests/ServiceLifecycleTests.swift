// SPDX-License-Identifier: Apache-2.0

#if ServiceLifecycle
import DispatchAIOServiceLifecycle
import XCTest

final class ServiceLifecycleTests: XCTestCase {}
#endif

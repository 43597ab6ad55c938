// SPDX-License-Identifier: Apache-2.0

#if Metrics
import DispatchAIOMetrics
import XCTest

final class MetricsTests: XCTestCase {}
#endif

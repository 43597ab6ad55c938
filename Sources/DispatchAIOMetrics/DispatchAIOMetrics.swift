// SPDX-License-Identifier: Apache-2.0
//
// The library is imported with the plug.

#if Metrics
@_exported public import DispatchAIO
#endif

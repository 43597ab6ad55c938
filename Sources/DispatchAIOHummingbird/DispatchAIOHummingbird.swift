// SPDX-License-Identifier: Apache-2.0
//
// The library is imported with the plug.

#if Hummingbird
@_exported public import DispatchAIO
#endif

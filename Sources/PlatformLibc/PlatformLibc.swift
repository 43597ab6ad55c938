// SPDX-License-Identifier: Apache-2.0
//
// The platform's C library under one name, so that what differs between platforms is asked for
// here, in Internal/Kernel and in C, and nowhere else.

#if canImport(Darwin)
@_exported public import Darwin
#elseif canImport(Glibc)
@_exported public import Glibc
#elseif canImport(Musl)
@_exported public import Musl
#endif

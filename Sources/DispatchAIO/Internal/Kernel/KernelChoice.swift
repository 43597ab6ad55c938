// SPDX-License-Identifier: Apache-2.0

internal import Glibc

/// The kernel that the environment of the process asks for, by the variable `DISPATCH_AIO_KERNEL`.
/// A variable, and no trait of the package: one build has both, with sanitizers and without, and a
/// trait that any package of a program enables would take kernel AIO from all of them.
enum KernelChoice: Equatable {
  static let variable = "DISPATCH_AIO_KERNEL"

  /// Kernel AIO, where it works.
  case best
  /// Every request is a system call on an offload thread, also where kernel AIO works.
  case threads
  /// The variable has another value.
  case unknown(String)

  /// Read once, by the first caller.
  static let ofProcess = KernelChoice(unsafe getenv(variable).map { unsafe String(cString: $0) })

  init(_ value: String?) {
    switch value {
    case nil, "": self = .best
    case "threads": self = .threads
    case let value?: self = .unknown(value)
    }
  }
}

// SPDX-License-Identifier: Apache-2.0

internal import PlatformLibc

/// The kernel that the process uses. The variable `DISPATCH_AIO_KERNEL` of its environment chooses;
/// a build without kernel AIO has only threads.
enum KernelChoice: Equatable {
  static let variable = "DISPATCH_AIO_KERNEL"

  /// Kernel AIO, where it works.
  case best
  /// Every request is a system call on an offload thread, also where kernel AIO works.
  case threads
  /// The variable has another value.
  case unknown(String)

  /// Read once, by the first caller.
  static let ofProcess = {
    let choice = KernelChoice(unsafe getenv(variable).map { unsafe String(cString: $0) })
    return choice == .best && !LinuxKernel.isBuilt ? .threads : choice
  }()

  init(_ value: String?) {
    switch value {
    case nil, "": self = .best
    case "threads": self = .threads
    case let value?: self = .unknown(value)
    }
  }
}

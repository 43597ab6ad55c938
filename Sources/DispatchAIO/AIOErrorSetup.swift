// SPDX-License-Identifier: Apache-2.0

internal import SystemPackage

extension AIOError {
  /// Why there is no context: `io_setup(2)` or `eventfd(2)` answered an error.
  static func settingUp(errno: Errno, queueDepth: Int) -> AIOError {
    let subject = Subject(operation: .createContext)
    switch errno {
    case .resourceTemporarilyUnavailable:
      return AIOError(
        .contextLimit, errno: errno, subject,
        .contextLimit(
          asked: queueDepth, inUse: sysctl("aio-nr"), maximum: sysctl("aio-max-nr")))
    case .noFunction:
      return AIOError(
        .unavailable, errno: errno, subject,
        .text(
          """
          there is no kernel AIO here: the kernel was built without (CONFIG_AIO), or the sandbox \
          does not have it; options.withoutKernelAIO = .threads runs all the same
          """))
    case .notPermitted, .permissionDenied:
      return AIOError(
        .unavailable, errno: errno, subject,
        .text(
          """
          kernel AIO is forbidden to this process, by a seccomp profile most likely: allow \
          io_setup, io_submit, io_getevents and io_destroy; options.withoutKernelAIO = .threads \
          runs all the same
          """))
    default:
      return AIOError(errno: errno.rawValue, subject)
    }
  }

  /// A number under `/proc/sys/fs`.
  private static func sysctl(_ name: String) -> Int? {
    guard
      let file = try? FileDescriptor.open(
        FilePath("/proc/sys/fs/\(name)"), .readOnly, options: .closeOnExec)
    else { return nil }
    defer { try? file.close() }
    // Room for any number and its line feed.
    let text = unsafe String(unsafeUninitializedCapacity: 32) { buffer in
      (try? unsafe file.read(into: UnsafeMutableRawBufferPointer(buffer))) ?? 0
    }
    return Int(text.prefix { $0.isNumber })
  }
}

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
        .text("this kernel was built without AIO (CONFIG_AIO)"))
    case .notPermitted:
      return AIOError(
        .unavailable, errno: errno, subject,
        .text("AIO is forbidden to this process, by a seccomp profile most likely"))
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

// SPDX-License-Identifier: Apache-2.0

internal import SystemPackage

extension AIOError {
  /// The error for a context that could not be made: `io_setup(2)` or `eventfd(2)` failed, or
  /// Dispatch cannot have what it needs (see ``DispatchProbe``).
  static func settingUp(errno: Errno, queueDepth: Int) -> AIOError {
    let subject = Subject(operation: .createContext)
    switch errno {
    case .resourceTemporarilyUnavailable:
      return AIOError(
        .contextLimit, errno: errno, subject,
        .contextLimit(
          asked: FileShares.room(queueDepth: queueDepth), inUse: sysctl("aio-nr"),
          maximum: sysctl("aio-max-nr")))
    case .noFunction:
      return AIOError(
        .unavailable, errno: errno, subject,
        .text(
          """
          there is no kernel AIO here: the kernel was built without (CONFIG_AIO), or the sandbox \
          does not have it; options.withoutKernelAIO = .threads runs all the same, and so does \
          \(KernelChoice.variable)=threads in the environment
          """))
    case .notPermitted, .permissionDenied:
      return AIOError(
        .unavailable, errno: errno, subject,
        .text(
          """
          kernel AIO is forbidden to this process, by a seccomp profile most likely: allow \
          io_setup, io_submit, io_getevents and io_destroy; options.withoutKernelAIO = .threads \
          runs all the same, and so does \(KernelChoice.variable)=threads in the environment
          """))
    case .tooManyOpenFiles, .tooManyOpenFilesInSystem:
      let limit =
        errno == .tooManyOpenFiles
        ? "the process's limit (`ulimit -n`)" : "the machine's limit (fs.file-max)"
      return AIOError(
        .descriptorLimit, errno: errno, subject,
        .text(
          """
          there are no file descriptors left for the context: \(DispatchProbe.descriptorsNeeded) \
          are needed for it and for Dispatch; close files that are not needed, or raise \(limit)
          """))
    case .noSpace:
      let maximum = sysctl("epoll/max_user_watches").map(String.init) ?? "unknown"
      return AIOError(
        .descriptorLimit, errno: errno, subject,
        .text(
          """
          no event reaches the queue: the user's epoll watches are used up most likely \
          (fs.epoll.max_user_watches is \(maximum)); raise it with sysctl, or close descriptors \
          that are watched
          """))
    default:
      return AIOError(errno: errno.rawValue, subject)
    }
  }

  /// The error for a value of the environment's that names no kernel.
  static func unknownKernel(_ value: String) -> AIOError {
    AIOError(
      .invalidOption, Subject(operation: .createContext),
      .text(
        """
        the environment variable \(KernelChoice.variable) is "\(value)"; it must be "threads", or \
        not be set
        """))
  }

  static func concurrentQueue(_ label: String) -> AIOError {
    AIOError(
      .invalidOption, Subject(operation: .createContext),
      .text(
        """
        the queue '\(label)' was given, which is concurrent; give a serial queue, or none for one of \
        the library's
        """))
  }

  /// A number under `/proc/sys/fs`.
  private static func sysctl(_ name: String) -> Int? {
    guard
      let file = try? FileDescriptor.open(
        FilePath("/proc/sys/fs/\(name)"), .readOnly, options: .closeOnExec)
    else { return nil }
    defer { try? file.close() }
    // 32 bytes have room for any number and its line feed.
    let text = unsafe String(unsafeUninitializedCapacity: 32) { buffer in
      (try? unsafe file.read(into: UnsafeMutableRawBufferPointer(buffer))) ?? 0
    }
    return Int(text.prefix { $0.isNumber })
  }
}

// SPDX-License-Identifier: Apache-2.0
//
// A trial of kernel AIO. A sandbox may have `io_setup(2)` and then refuse what is submitted, or
// never complete it; so one read is made whose answer is known: one byte of /dev/zero. Linux has
// completed it when `io_submit(2)` returns.

internal import Dispatch
internal import PlatformLibc
internal import SystemPackage

enum KernelProbe {
  /// The longest wait for the answer, in nanoseconds.
  private static let patience: UInt64 = 200_000_000

  /// The errno for which kernel AIO does not work here; `nil` if it works, or cannot be tried
  /// (without a /dev, or while the kernel has no room). Found once, by the first caller.
  static let failure: Errno? = {
    let failure = probe()
    // Answers that do not say whether it would work at another time.
    let passing: [Errno] = [
      .resourceTemporarilyUnavailable, .noMemory, .interrupted, .tooManyOpenFiles,
      .tooManyOpenFilesInSystem,
    ]
    return failure.flatMap { passing.contains($0) ? nil : $0 }
  }()

  private static func probe() -> Errno? {
    guard
      let zero = try? FileDescriptor.open(FilePath("/dev/zero"), .readOnly, options: .closeOnExec)
    else { return nil }
    defer { try? zero.close() }
    let kernel: LinuxKernel
    do {
      kernel = try LinuxKernel(room: 1)
    } catch {
      return error
    }
    // io_destroy takes some 30 ms, for which no caller has to wait.
    defer { DispatchQueue(label: "DispatchAIO.probe").async { kernel.destroy() } }
    // On the heap: if the read never completes, the byte may be written to later, and is leaked.
    let byte = UnsafeMutableRawBufferPointer.allocate(byteCount: 1, alignment: 1)
    unsafe byte[0] = 1
    switch unsafe kernel.read(zero.rawValue, into: byte, waiting: patience) {
    case .refused(let errno):
      unsafe byte.deallocate()
      return Errno(rawValue: errno)
    case .lost(let errno):
      return Errno(rawValue: errno)
    case .completed(let count):
      defer { unsafe byte.deallocate() }
      // A completion without the byte is no better than none: reads would have no data.
      return unsafe count == 1 && byte[0] == 0 ? nil : .noFunction
    }
  }
}

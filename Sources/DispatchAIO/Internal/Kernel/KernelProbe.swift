// SPDX-License-Identifier: Apache-2.0
//
// Whether kernel AIO really works here. A sandbox may know `io_setup` and then refuse, or never
// complete, what is submitted; so a request is made whose answer is known: one byte of /dev/zero.
// Linux has it when `io_submit` returns.

internal import CLibAIO
internal import Dispatch
internal import Glibc
internal import SystemPackage

enum KernelProbe {
  /// How long to wait for the answer, in nanoseconds.
  private static let patience: UInt64 = 200_000_000

  /// What is wrong with kernel AIO here; `nil` when it works, or cannot be tried (without a /dev,
  /// or at a moment when the kernel has no room). Found out once, by the first who asks.
  static let failure: Errno? = {
    let failure = probe()
    // What says nothing of whether it would work at another time.
    let passing: [Errno] = [.resourceTemporarilyUnavailable, .noMemory, .interrupted]
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
    // io_destroy takes some 30 ms, which nobody has to wait for.
    defer { DispatchQueue(label: "DispatchAIO.probe").async { kernel.destroy() } }
    // On the heap: what never completes may still be written to later, and is left to that.
    let byte = UnsafeMutablePointer<UInt8>.allocate(capacity: 1)
    unsafe byte.initialize(to: 1)
    var block = unsafe iocb()
    unsafe block.aio_fildes = zero.rawValue
    unsafe block.aio_lio_opcode = Int16(IO_CMD_PREAD.rawValue)
    unsafe block.u.c.buf = UnsafeMutableRawPointer(byte)
    unsafe block.u.c.nbytes = 1
    let submitted = unsafe withUnsafeMutablePointer(to: &block) { block in
      var pointer: UnsafeMutablePointer<iocb>? = unsafe block
      return unsafe kernel.submit(&pointer, count: 1)
    }
    guard submitted == 1 else {
      unsafe byte.deallocate()
      return Errno(rawValue: Int32(max(1, -submitted)))
    }
    var event = unsafe io_event()
    let reaped = unsafe kernel.call(into: &event, capacity: 1, waiting: patience)
    guard reaped == 1 else { return reaped < 0 ? Errno(rawValue: Int32(-reaped)) : .noFunction }
    defer { unsafe byte.deallocate() }
    // With the byte; else nobody would ever have what he reads.
    return unsafe event.res == 1 && byte.pointee == 0 ? nil : .noFunction
  }
}

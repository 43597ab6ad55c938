// SPDX-License-Identifier: Apache-2.0
//
// Whether kernel AIO really works here. A sandbox may know `io_setup` and then refuse, or never
// complete, what is submitted; so a request is made whose answer is known: one byte of /dev/zero,
// which is there when `io_submit` returns.

internal import CLibAIO
internal import Dispatch
internal import Glibc
internal import SystemPackage

enum KernelProbe {
  /// What is wrong with kernel AIO here; `nil` when it works, or cannot be tried (without a /dev).
  /// Found out once, by the first who asks.
  static let failure: Errno? = probe()

  private static func probe() -> Errno? {
    guard
      let zero = try? FileDescriptor.open(FilePath("/dev/zero"), .readOnly, options: .closeOnExec)
    else { return nil }
    defer { try? zero.close() }
    let kernel: LinuxKernel
    do {
      kernel = try LinuxKernel(queueDepth: 1)
    } catch {
      // Contexts that are used up say nothing of whether they would work.
      return error == .resourceTemporarilyUnavailable ? nil : error
    }
    // io_destroy takes some 30 ms, which nobody has to wait for.
    defer { DispatchQueue(label: "DispatchAIO.probe").async { kernel.destroy() } }
    var byte: UInt8 = 1
    return unsafe withUnsafeMutableBytes(of: &byte) { bytes in
      var block = unsafe iocb()
      unsafe block.aio_fildes = zero.rawValue
      unsafe block.aio_lio_opcode = Int16(IO_CMD_PREAD.rawValue)
      unsafe block.u.c.buf = bytes.baseAddress
      unsafe block.u.c.nbytes = 1
      let submitted = unsafe withUnsafeMutablePointer(to: &block) { block in
        var pointer: UnsafeMutablePointer<iocb>? = unsafe block
        return unsafe kernel.submit(&pointer, count: 1)
      }
      guard submitted == 1 else { return Errno(rawValue: Int32(max(1, -submitted))) }
      var event = unsafe io_event()
      let reaped = unsafe kernel.call(into: &event, capacity: 1, waiting: 0)
      // Completed, and with the byte; else nobody would ever hear of a request.
      guard reaped == 1, unsafe event.res == 1, unsafe bytes[0] == 0 else { return .noFunction }
      return nil
    }
  }
}

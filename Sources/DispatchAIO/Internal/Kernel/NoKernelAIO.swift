// SPDX-License-Identifier: Apache-2.0
//
// In place of LinuxKernel.swift where there is no Linux, and where the trait `ThreadsOnly` asks for
// a library without libaio.

#if !os(Linux) || ThreadsOnly
internal import PlatformLibc
internal import SystemPackage

/// Kernel AIO that cannot be had: no value can be made, and what one would answer is what a kernel
/// without it does. Every request is a system call on a thread.
struct LinuxKernel: Kernel {
  static let isBuilt = false

  enum ReadAnswer: Equatable {
    case refused(Int32)
    case lost(Int32)
    case completed(Int)
  }

  /// - Throws: `ENOSYS`, always.
  init(room: Int) throws(Errno) { throw .noFunction }

  func submit(
    _ requests: UnsafeMutablePointer<UnsafeMutablePointer<ControlBlock>?>, count: Int
  ) -> Int { -Int(ENOSYS) }

  func reap(
    into events: UnsafeMutablePointer<CompletionEvent>, capacity: Int, waiting nanoseconds: UInt64
  ) -> Int { -Int(ENOSYS) }

  func read(
    _ descriptor: Int32, into memory: UnsafeMutableRawBufferPointer, waiting nanoseconds: UInt64
  ) -> ReadAnswer { .refused(ENOSYS) }

  func wake() {}

  func destroy() {}
}
#endif

// SPDX-License-Identifier: Apache-2.0

/// The kernel that a context was made with.
enum SystemKernel: Kernel {
  case aio(LinuxKernel)
  case threads(ThreadKernel)

  var takesRequests: Bool {
    switch self {
    case .aio(let kernel): kernel.takesRequests
    case .threads(let kernel): kernel.takesRequests
    }
  }

  @inline(__always)
  func submit(_ requests: UnsafeMutablePointer<UnsafeMutablePointer<ControlBlock>?>, count: Int)
    -> Int
  {
    switch self {
    case .aio(let kernel): unsafe kernel.submit(requests, count: count)
    case .threads(let kernel): unsafe kernel.submit(requests, count: count)
    }
  }

  @inline(__always)
  func reap(
    into events: UnsafeMutablePointer<CompletionEvent>, capacity: Int, waiting nanoseconds: UInt64
  ) -> Int {
    switch self {
    case .aio(let kernel):
      unsafe kernel.reap(into: events, capacity: capacity, waiting: nanoseconds)
    case .threads(let kernel):
      unsafe kernel.reap(into: events, capacity: capacity, waiting: nanoseconds)
    }
  }

  func waitTimerFired() {
    if case .aio(let kernel) = self { kernel.waitTimerFired() }
  }

  /// Ends the `reap` in which another thread waits.
  func wake() {
    if case .aio(let kernel) = self { kernel.wake() }
  }

  func destroy() {
    switch self {
    case .aio(let kernel): kernel.destroy()
    case .threads(let kernel): kernel.destroy()
    }
  }
}

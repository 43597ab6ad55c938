// SPDX-License-Identifier: Apache-2.0
//
// System calls that may sleep and belong to no context: those that open a file, close it, or ask
// for its size. They have an offload queue of their own, in which file systems take turns, so that
// one that hangs does not hold up the others. Their threads are those of serial queues: after the
// workers of others Dispatch looks once a second, for which it needs a descriptor, and ends the
// process if there is none.

package enum BlockingCalls {
  /// The number of threads that work at a time while none is stuck, and the most threads.
  static let threads = (base: 16, limit: 512)

  private struct Call {
    var body: (@Sendable () -> Void)?
    /// The number of its file system in the queue, and whether only this call has it.
    var number: UInt32 = 0
    var isNumberItsOwn = false
  }

  private struct State {
    var calls: [Call] = []
    var free: [UInt32] = []
    var numbers: [UInt64: UInt32] = [:]
    var nextNumber: UInt32 = 0
    var freeNumbers: [UInt32] = []

    mutating func takeNumber() -> UInt32 {
      if let number = freeNumbers.popLast() { return number }
      defer { nextNumber += 1 }
      return nextNumber
    }
  }

  private static let state = Lock(State())
  private static let queue = OffloadQueue(base: threads.base, limit: threads.limit) { _ in true }
  private static let pool = OffloadPool(queue: queue, limit: threads.limit) {
    { item, _ in perform(item) }
  }

  /// Runs a block on a thread that may sleep.
  ///
  /// - Parameter device: The device of the file system of the call; if `nil`, as before a file is
  ///   open, it is unknown, and the call takes turns as a file system of its own.
  package static func run(on device: UInt64?, _ body: @escaping @Sendable () -> Void) {
    let (item, number) = state.withLock { state -> (UInt32, UInt32) in
      let item = state.free.popLast() ?? UInt32(state.calls.count)
      if item == state.calls.count { state.calls.append(Call()) }
      let number = device.flatMap { state.numbers[$0] } ?? state.takeNumber()
      if let device { state.numbers[device] = number }
      state.calls[Int(item)] = Call(body: body, number: number, isNumberItsOwn: device == nil)
      return (item, number)
    }
    queue.append(item, file: number, kind: .read)
    pool.start(for: nil)
  }

  /// Runs a block on a thread that may sleep, and waits for its result.
  static func value<Value: Sendable>(
    on device: UInt64?, isolation: isolated (any Actor)? = #isolation,
    _ body: @escaping @Sendable () throws(AIOError) -> Value
  ) async throws(AIOError) -> Value {
    // Resumed once, by the block.
    try await suspended(isolation: isolation) { (resumption: Resumption<Result<Value, AIOError>>) in
      run(on: device) { resumption.resume(returning: Result(catching: body)) }
    }.get()
  }

  private static func perform(_ item: UInt32) {
    let body = state.withLock { $0.calls[Int(item)].body.take() }
    body?()
    state.withLock { state in
      let call = state.calls[Int(item)]
      if call.isNumberItsOwn { state.freeNumbers.append(call.number) }
      state.free.append(item)
    }
  }
}

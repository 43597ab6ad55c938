// SPDX-License-Identifier: Apache-2.0
//
// The work of an offload thread: one request at a time, by `io_submit(2)` into the kernel context
// that the loop uses, too, or by the plain system call. A request that the kernel takes completes
// like any other; every other one is returned to the loop through `table.offloadResults`.

internal import CKernel
internal import PlatformLibc

/// The state of one offload thread, not shared.
struct OffloadWorker<K: Kernel, Attachment: Sendable & ~Copyable>: ~Copyable {
  private let kernel: K
  let table: RequestTable<Attachment>
  private let event: Int32
  var batch = SubmissionBatch(capacity: 1)

  init(kernel: K, table: RequestTable<Attachment>, event: Int32) {
    self.kernel = kernel
    self.table = table
    self.event = event
  }

  /// Carries out a request that was claimed, with the writes that continue it, if there are any.
  /// May sleep for long.
  ///
  /// - Returns: Whether it has returned a request, for which the loop needs a turn; if not, the
  ///   completion arrives through the eventfd, and may have arrived already.
  mutating func perform(_ slot: UInt32, _ more: [UInt32] = []) -> Bool {
    guard table[request: slot].verb == .write else { return attempt(slot) }
    // The request, and so its file, may be gone when `attempt` returns.
    let predictor = table[request: slot].file.predictor
    let start = kernel.now
    predictor.offloadedWriteBegins()
    defer { predictor.offloadedWriteEnded(start: start, now: kernel.now) }
    if table[request: slot].options.contains(.append) {
      append([slot] + more)
      return true
    }
    guard more.isEmpty else {
      writeContiguously(slot, more)
      return true
    }
    return attempt(slot)
  }

  /// Makes several writes, which continue each other, by one call, unless the kernel transfers only
  /// a part, or refuses: then the write at fault gets the answer, and those behind it are made by
  /// the next call. Durable appends all get it: see `Request.isDurableAppend`.
  private mutating func writeContiguously(_ slot: UInt32, _ more: [UInt32]) {
    let table = table
    var slots = [slot] + more
    while !slots.isEmpty {
      let answer = callSystem(table, slots)
      if answer < 0, table[request: slots[0]].isDurableAppend {
        for slot in slots { give(slot, answer) }
        return
      }
      let (whole, rest) = ContiguousWrites.split(
        max(0, answer), slots.lazy.map { table[request: $0].chunkLength })
      for slot in slots.prefix(whole) { give(slot, table[request: slot].chunkLength) }
      if whole < slots.count, rest > 0 || answer <= 0 {
        give(slots[whole], rest > 0 ? rest : answer)
        slots.removeFirst(whole + 1)
      } else {
        slots.removeFirst(whole)
      }
    }
  }

  /// Returns a request to the loop.
  func give(_ slot: UInt32, _ answer: Int) {
    table[slot].answer = answer
    table.offloadResults.push(slot)
  }

  /// Calls `pwritev(2)` with the memory of all of the writes.
  private mutating func callSystem(_ table: RequestTable<Attachment>, _ slots: [UInt32]) -> Int {
    batch.removeAll()
    for slot in slots { batch.appendVectors(of: table[request: slot]) }
    let (file, offset) = (
      table[request: slots[0]].descriptor, table[request: slots[0]].chunkOffset
    )
    guard file >= 0 else { return Int(file) }
    // `continues` sees to it that all have the same.
    let flags = Int32(table[request: slots[0]].options.rawValue)
    var answer: Int
    repeat {
      answer = unsafe batch.withVectors { vectors, count in
        unsafe Int(ckernel_pwritev(file, vectors, Int32(count), offset, flags))
      }
    } while answer == -Int(EINTR) && !table[request: slots[0]].isDurableAppend
    return answer
  }

  private mutating func attempt(_ slot: UInt32) -> Bool {
    let table = table
    if table[request: slot].verb == .read, let direct = table[request: slot].file.directReads {
      direct.openIfWanted(table[request: slot].file.descriptor)
    }
    let answer =
      table[request: slot].route == .offload ? submit(slot) : callSystem(table[request: slot])
    guard let answer else { return false }
    give(slot, answer)
    return true
  }

  /// - Returns: `nil` if the kernel has taken it: then it may have completed, and its slot may be
  ///   another request's.
  private mutating func submit(_ slot: UInt32) -> Int? {
    let table = table
    batch.removeAll()
    batch.append(table[request: slot], tag: table.tag(of: slot), event: event, isNowait: false)
    table.handToKernel(slot)
    var answer: Int
    repeat { answer = batch.submit(from: 0, to: kernel) } while answer == -Int(EINTR)
    if answer > 0 { return nil }
    return answer == 0 ? -Int(EAGAIN) : answer
  }

  /// Carries out the request by `preadv2(2)`, `pwritev2(2)`, `fsync(2)` or `fdatasync(2)`.
  private mutating func callSystem(_ request: borrowing Request<Attachment>) -> Int {
    let file = request.descriptor
    guard file >= 0 else { return Int(file) }
    let (offset, flags) = (request.chunkOffset, Int32(request.options.rawValue))
    var answer: Int
    repeat {
      switch request.operation {
      case .fsync: answer = Int(ckernel_fsync(file))
      case .fdatasync: answer = Int(ckernel_fdatasync(file))
      case .read(let memory):
        answer = unsafe batch.withVectors(of: memory, request) { vectors, count in
          unsafe Int(ckernel_preadv(file, vectors, Int32(count), offset, flags))
        }
      case .write(let memory):
        answer = unsafe batch.withVectors(of: memory, request) { vectors, count in
          unsafe Int(ckernel_pwritev(file, vectors, Int32(count), offset, flags))
        }
      }
    } while answer == -Int(EINTR) && !request.isDurableAppend
    return answer
  }
}

extension Request where Attachment: ~Copyable {
  /// The descriptor for a system call, which is opened if need be, or a negative errno.
  fileprivate var descriptor: Int32 {
    guard anyRangeWrite == .buffered, let writes = file.bufferedWrites else {
      return file.descriptor
    }
    return writes.open(file.descriptor)
  }
}

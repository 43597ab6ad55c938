// SPDX-License-Identifier: Apache-2.0
//
// What an offload thread does: one request at a time, by `io_submit` into the kernel context that the
// loop uses too, or by the plain system call. What the kernel takes completes like any other request;
// everything else is returned to the loop through `table.offloadResults`.

internal import CLinux
internal import Glibc

/// One thread's; not shared.
struct OffloadWorker<K: Kernel, Attachment: Sendable>: ~Copyable {
  private let kernel: K
  private let table: RequestTable<Attachment>
  private let event: Int32
  private var batch = SubmissionBatch(capacity: 1)

  init(kernel: K, table: RequestTable<Attachment>, event: Int32) {
    self.kernel = kernel
    self.table = table
    self.event = event
  }

  /// Does a request that was claimed. May sleep, for long.
  ///
  /// - Returns: whether it has returned the request, so that the loop has to look; else its
  ///   completion comes through the eventfd, and may have come already.
  mutating func perform(_ slot: UInt32) -> Bool {
    guard table[request: slot].verb == .write else { return attempt(slot) }
    // The request, and so its file, may be gone when `attempt` returns.
    let predictor = table[request: slot].file.predictor
    let start = clinux_monotonic_nanoseconds()
    predictor.offloadedWriteBegins()
    defer { predictor.offloadedWriteEnded(start: start, now: clinux_monotonic_nanoseconds()) }
    return attempt(slot)
  }

  private mutating func attempt(_ slot: UInt32) -> Bool {
    let table = table
    let answer =
      table[request: slot].route == .offload ? submit(slot) : callSystem(table[request: slot])
    guard let answer else { return false }
    table[slot].answer = answer
    table.offloadResults.push(slot)
    return true
  }

  /// - Returns: `nil` when the kernel has taken it: then it is not ours any more, may have completed,
  ///   and its slot may be another's.
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

  /// The request as a system call: `preadv(2)`, `pwritev(2)`, `fsync(2)`, `fdatasync(2)`.
  private mutating func callSystem(_ request: borrowing Request<Attachment>) -> Int {
    let file = request.file.descriptor
    let offset = off_t(request.chunkOffset)
    var answer: Int
    repeat {
      switch request.operation {
      case .fsync: answer = Int(Glibc.fsync(file))
      case .fdatasync: answer = Int(Glibc.fdatasync(file))
      case .read(let memory):
        answer = unsafe batch.withVectors(of: memory, request) { vectors, count in
          unsafe preadv(file, vectors, Int32(count), offset)
        }
      case .write(let memory):
        answer = unsafe batch.withVectors(of: memory, request) { vectors, count in
          unsafe pwritev(file, vectors, Int32(count), offset)
        }
      }
      if answer < 0 { answer = -Int(errno) }
    } while answer == -Int(EINTR)
    return answer
  }
}

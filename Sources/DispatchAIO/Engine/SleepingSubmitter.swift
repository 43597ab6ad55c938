// SPDX-License-Identifier: Apache-2.0
//
// What a thread does that may sleep: one request at a time, into the kernel context that the loop
// uses too, or by the plain system call. What the kernel takes completes like any other request;
// everything else goes back to the loop through `table.returns`.

internal import CLinux
internal import Glibc

/// One thread's; not shared.
struct SleepingSubmitter<K: Kernel, Attachment: Sendable>: ~Copyable {
  private let kernel: K
  private let table: RequestTable<Attachment>
  private let event: Int32
  private var batch = SubmissionBatch(capacity: 1)

  init(kernel: K, table: RequestTable<Attachment>, event: Int32) {
    self.kernel = kernel
    self.table = table
    self.event = event
  }

  /// Does what the engine handed over with `nextAsleep`. May sleep, for long.
  ///
  /// - Returns: whether the request is in `table.returns`, so that the loop has to look; else its
  ///   completion comes through the eventfd, and may have come already.
  mutating func submit(_ slot: UInt32, _ route: Route) -> Bool {
    let table = table
    let answer: Int
    if route == .performed {
      answer = perform(table[request: slot])
    } else {
      batch.removeAll()
      batch.append(
        table[request: slot], tag: table.tag(of: slot), event: event, isNowait: false)
      table.handToKernel(slot)
      var attempt: Int
      repeat { attempt = batch.submit(from: 0, to: kernel) } while attempt == -Int(EINTR)
      // Not ours any more: it may have completed, and the slot may be another's.
      if attempt > 0 { return false }
      answer = attempt == 0 ? -Int(EAGAIN) : attempt
    }
    table[slot].answer = answer
    table.returns.push(slot)
    return true
  }

  /// The request as a system call: `preadv(2)`, `pwritev(2)`, `fsync(2)`, `fdatasync(2)`.
  private mutating func perform(_ request: borrowing AcceptedRequest<Attachment>) -> Int {
    let file = request.file.descriptor
    let offset = request.offset + Int64(request.resume)
    var answer: Int
    repeat {
      switch request.operation {
      case .fsync: answer = Int(Glibc.fsync(file))
      case .fdatasync: answer = Int(Glibc.fdatasync(file))
      case .read(let memory):
        answer = unsafe batch.withVectors(of: memory, request) { vectors, count in
          unsafe preadv(file, vectors, Int32(count), off_t(offset))
        }
      case .write(let memory):
        answer = unsafe batch.withVectors(of: memory, request) { vectors, count in
          unsafe pwritev(file, vectors, Int32(count), off_t(offset))
        }
      }
      if answer < 0 { answer = -Int(errno) }
    } while answer == -Int(EINTR)
    return answer
  }
}

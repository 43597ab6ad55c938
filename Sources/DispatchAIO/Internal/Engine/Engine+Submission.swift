// SPDX-License-Identifier: Apache-2.0
//
// The engine's way down: which of the pending requests the kernel gets now, in one call as far as
// they fit, and what the offload queue gets instead.

internal import CLinux
internal import Glibc

extension Engine {
  /// Hands pending requests to the kernel, as many as it has room for, in as few calls as it takes,
  /// and until the turn's share of copying and time is used up.
  mutating func submit() -> Submission {
    while true {
      let isOverBudget = !fillBatch()
      // Last, so that it shares the call with what the handlers of the last event have asked for.
      // What is ready is looked at first: a poll for it would complete at once, for nothing.
      let isToArm = pollDescriptor >= 0 && !isPollArmed && !isPollReady
      let poll = isToArm ? batch.count : -1
      if poll >= 0 {
        batch.appendPoll(pollDescriptor, tag: LinuxKernel.pollTag, event: event)
      }
      var done = 0
      while done < batch.count {
        let answer = callKernel(from: done)
        switch answer {
        case let taken where taken > 0:
          if (done..<done + taken).contains(poll) {
            isPollArmed = true
            inKernel -= 1
          }
          done += taken
          inKernel += taken
        case -Int(EINTR):
          continue
        case 0, -Int(EAGAIN):
          putBack(from: done)
          checkAccounts()
          return .stalled
        case _ where done == poll:
          isPollUnsupported = true
          pollDescriptor = -1
          done += 1
        case let refusal:
          // The first of the array is at fault, whatever the rest is like.
          let slot = slot(ofTag: batch.tag(at: done))
          releaseRoom(slot)
          noLongerUnsignalled(slot)
          end(slot, refusal)
          done += 1
        }
      }
      if isOverBudget { return .overBudget }
      guard done > 0 else { break }
    }
    checkAccounts()
    return blocked.isEmpty ? .settled : .stalled
  }

  /// One call of `io_submit`, with the batch from an index on.
  private mutating func callKernel(from index: Int) -> Int {
    let began = clinux_monotonic_nanoseconds()
    let answer = batch.submit(from: index, to: kernel)
    let ended = clinux_monotonic_nanoseconds()
    let took = ended &- began
    counts.count(submission: answer, took: took)
    submitNanoseconds &+= took
    if took > FileSystemHealth.slowSubmit, answer > 0 {
      for taken in index..<index + answer where batch.tag(at: taken) != LinuxKernel.pollTag {
        let slot = slot(ofTag: batch.tag(at: taken))
        guard table[request: slot].verb == .write else { continue }
        table[request: slot].file.predictor.submissionTook(took, now: ended)
      }
    }
    return answer
  }

  /// Moves requests to the batch: first those that were parked, whose files may have more by now,
  /// then those that are pending.
  ///
  /// - Returns: `false` when the turn's share is used up, and more would go down otherwise.
  private mutating func fillBatch() -> Bool {
    batch.removeAll()
    var contents = BatchContents()
    defer { settle(contents) }
    if shares.parkedCount > 0 {
      shares.rotateParkedFiles()
      for file in shares.parkedFiles {
        while !shares.isFull, shares.hasRoom(for: file), let slot = shares.firstParked(of: file) {
          switch submit(slot, &contents) {
          case .taken: continue
          case .batchIsFull: return true
          case .overBudget: return false
          case .beingCancelled: break
          }
          break
        }
      }
    }
    var slot = pending.first
    while slot != SlotList.end, !shares.isFull {
      let next = table[slot].next
      let file = table[request: slot].file.number
      if shares.hasParked(file) || !shares.hasRoom(for: file) {
        pending.remove(slot, in: table)
        table[slot].place = .parked
        shares.park(slot, of: file, in: table)
      } else {
        switch submit(slot, &contents) {
        case .taken, .beingCancelled: break
        case .batchIsFull: return true
        case .overBudget: return false
        }
      }
      slot = next
    }
    return true
  }

  /// What a batch has, as far as it matters for what comes after it.
  struct BatchContents {
    var hasDisk = false
    var hasReads = false
  }

  private enum Taking {
    /// The request is in the batch, or in the offload queue.
    case taken
    /// It stays where it is, and `collect` finds it there.
    case beingCancelled
    case batchIsFull
    case overBudget
  }

  /// Takes a request, whose file has room in the kernel, out of the list that it is in.
  @inline(__always)
  private mutating func submit(_ slot: UInt32, _ contents: inout BatchContents) -> Taking {
    // Looked at now, and not when it arrived: something may have been learned since.
    var route = route(of: table[request: slot])
    if route.isOnLoop, policy == .nonblocking, table[request: slot].operation.mayFaultOnDisk {
      route = table[request: slot].file.predictor.offloadRoute
    }
    guard route.isOnLoop else {
      unlist(slot)
      table[request: slot].route = route
      if route == .offload { takeRoom(slot) }
      offload(slot)
      return .taken
    }
    guard copiedBytes < Self.copyBudget, submitNanoseconds < Self.submitBudget else {
      return .overBudget
    }
    guard batch.hasRoom(for: table[request: slot].operation) else { return .batchIsFull }
    guard table.claim(slot) else { return .beingCancelled }
    unlist(slot)
    takeRoom(slot)
    table[slot].place = .inKernel
    let copied = prepare(slot, route)
    copiedBytes += copied
    if copied == 0 { contents.hasDisk = true }
    if table[request: slot].verb == .read { contents.hasReads = true }
    return .taken
  }

  /// Adds a request that was claimed to the batch.
  ///
  /// - Returns: how many bytes `io_submit` itself will copy for it.
  @inline(__always)
  private mutating func prepare(_ slot: UInt32, _ route: Route) -> Int {
    table[request: slot].route = route
    table[request: slot].isRouteForced = false
    let traits = table[request: slot].file.traits
    let length = table[request: slot].chunkLength
    // A memory file has done it when `io_submit` returns, and then the loop looks at the ring anyway.
    let isUnsignalled = traits.isMemory && route == .inline && length > 0
    table[request: slot].isUnsignalled = isUnsignalled
    if isUnsignalled { unsignalled += 1 }
    batch.append(
      table[request: slot], tag: table.tag(of: slot), event: isUnsignalled ? nil : event,
      isNowait: route == .nowait)
    return traits.isMemory || !traits.isDirect ? length : 0
  }

  private mutating func settle(_ contents: BatchContents) {
    guard batch.count > 0 else { return }
    isForDisk = contents.hasDisk
    firstBatch = contents.hasReads ? Self.firstBatches.afterReads : Self.firstBatches.afterWrites
  }

  /// What the kernel had no room for goes back to the head of the queue, in its order.
  private mutating func putBack(from first: Int) {
    for index in (first..<batch.count).reversed()
    where batch.tag(at: index) != LinuxKernel.pollTag {
      let slot = slot(ofTag: batch.tag(at: index))
      noLongerUnsignalled(slot)
      releaseRoom(slot)
      table.unclaim(slot)
      let file = table[request: slot].file.number
      if shares.hasParked(file) {
        // Those were accepted after it.
        table[slot].place = .parked
        shares.park(slot, of: file, isFirst: true, in: table)
      } else {
        table[slot].place = .pending
        pending.prepend(slot, in: table)
      }
    }
  }

  @inline(__always)
  mutating func noLongerUnsignalled(_ slot: UInt32) {
    if table[request: slot].isUnsignalled {
      table[request: slot].isUnsignalled = false
      unsignalled -= 1
    }
  }
}

extension Operation {
  /// Whether the kernel may have to read its memory in from a disk: pages of the caller's own, of
  /// which `mincore(2)` says that they are not there, as of a mapped file that is cold. `io_submit`
  /// reads them in, NOWAIT or not.
  var mayFaultOnDisk: Bool {
    @inline(__always) get {
      switch self {
      case .fsync, .fdatasync: false
      case .read(let memory), .write(let memory): memory.isForeign && !memory.isResident
      }
    }
  }
}

extension Memory {
  fileprivate var isResident: Bool {
    for index in 0..<elements {
      let bytes = unsafe self[index]
      // Reads nothing of the memory: only whether its pages are there.
      if unsafe clinux_is_resident(bytes.baseAddress, UInt(bytes.count)) == 0 { return false }
    }
    return true
  }
}

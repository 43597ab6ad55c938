// SPDX-License-Identifier: Apache-2.0
//
// Submission: the pending requests that the kernel gets now, in one call if they fit, and those
// that the offload queue gets instead.

internal import CKernel
internal import PlatformLibc

extension Engine where Attachment: ~Copyable {
  /// Submits pending requests, as many as the kernel has room for, in as few calls as possible,
  /// until the turn's budget of copying and time is used up.
  mutating func submit() -> Submission {
    while true {
      let isOverBudget = !fillBatch()
      // The poll request is last, so that it shares the call with the requests of the last event's
      // handlers; and it is made only after those have run, because it would complete at once for
      // the readiness that they act on.
      let poll = pollDescriptor >= 0 && !isPollArmed && !isPollReady ? batch.count : -1
      if poll >= 0 {
        batch.appendPoll(pollDescriptor, tag: ReservedTag.poll, event: event)
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
          endWhatMayNotWait(from: pending.first)
          checkAccounts()
          return .stalled
        case _ where done == poll:
          isPollUnsupported = true
          pollDescriptor = -1
          done += 1
        case let refusal:
          // The answer is about the first of the array, and says nothing of the rest.
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

  /// Makes one call of `io_submit(2)`, with the batch from an index on.
  private mutating func callKernel(from index: Int) -> Int {
    let began = kernel.now
    let answer = batch.submit(from: index, to: kernel)
    let ended = kernel.now
    let took = ended &- began
    let hasPoll =
      answer > 0 && batch.tag(at: index + answer - 1) == ReservedTag.poll
    counts.count(submission: hasPoll ? answer - 1 : answer, took: took)
    submitNanoseconds &+= took
    if took > FileSystemHealth.slowSubmit, answer > 0 {
      for taken in index..<index + answer where batch.tag(at: taken) != ReservedTag.poll {
        let slot = slot(ofTag: batch.tag(at: taken))
        guard table[request: slot].verb == .write else { continue }
        table[request: slot].file.predictor.submissionTook(took, now: ended)
      }
    }
    return answer
  }

  /// Moves requests to the batch: first parked ones, whose files may have more room by now, then
  /// pending ones.
  ///
  /// - Returns: `false` if the turn's budget is used up before all that fit were moved.
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
          }
        }
      }
    }
    var slot = pending.first
    while slot != SlotList.end, !shares.isFull {
      let next = table[slot].next
      let file = table[request: slot].file.number
      if shares.hasParked(file) || !shares.hasRoom(for: file) {
        pending.remove(slot, in: table)
        if table[request: slot].mayWait {
          table[slot].place = .parked
          shares.park(slot, of: file, in: table)
        } else {
          endWaiting(slot)
        }
      } else {
        switch submit(slot, &contents) {
        case .taken: break
        case .batchIsFull: return true
        case .overBudget: return false
        }
      }
      slot = next
    }
    if shares.isFull { endWhatMayNotWait(from: slot) }
    return true
  }

  /// Ends the pending requests, from one on, that would have to wait for room, and may not.
  private mutating func endWhatMayNotWait(from first: UInt32) {
    var slot = first
    while slot != SlotList.end {
      let next = table[slot].next
      if !table[request: slot].mayWait {
        pending.remove(slot, in: table)
        endWaiting(slot)
      }
      slot = next
    }
  }

  /// The properties of a batch that determine the next delivery batch.
  struct BatchContents {
    var hasDisk = false
    var hasReads = false
  }

  private enum Taking {
    /// The request is in the batch, or in the offload queue, or was found cancelled.
    case taken
    case batchIsFull
    case overBudget
  }

  /// Moves a request, whose file has room in the kernel, from its list to the batch, or to the
  /// offload queue.
  @inline(__always)
  private mutating func submit(_ slot: UInt32, _ contents: inout BatchContents) -> Taking {
    // Predicted now, and not on arrival: the predictor may have learned since.
    var route = route(of: table[request: slot])
    if route.isOnLoop, policy == .nonblocking, table[request: slot].operation.mayFaultOnDisk {
      route = table[request: slot].file.predictor.offloadRoute
    }
    if route == .nowait, table[request: slot].file.traits.isAutomatic {
      route = routeOfLargeRead(slot) ?? route
    }
    var transfer: DirectTransfer?
    if route == .direct {
      transfer = directTransfer(slot)
      if transfer == nil { route = .syscall }
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
    unlist(slot)
    guard table.claim(slot) else {
      table[slot].place = .beingCancelled
      beingCancelled += 1
      return .taken
    }
    if let transfer {
      guard prepareDirect(slot, transfer) else {
        table.unclaim(slot)
        table[request: slot].route = .syscall
        offload(slot)
        return .taken
      }
    }
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
  /// - Returns: The number of bytes that `io_submit(2)` itself will copy for it.
  @inline(__always)
  private mutating func prepare(_ slot: UInt32, _ route: Route) -> Int {
    table[request: slot].route = route
    table[request: slot].isRouteForced = false
    if route == .direct { return 0 }
    let traits = table[request: slot].file.traits
    if traits.isAutomatic, route == .nowait, table[request: slot].verb == .read {
      table[request: slot].chunkLimit = NowaitPredictor.longestCopy
    }
    let length = table[request: slot].chunkLength
    // A memory file has done it when `io_submit(2)` returns, after which the loop reaps in any
    // case.
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
    firstDeliveryLimit =
      contents.hasReads ? Self.firstDeliveryLimits.afterReads : Self.firstDeliveryLimits.afterWrites
  }

  /// Returns the requests for which the kernel had no room to the head of the queue, in their
  /// order.
  private mutating func putBack(from first: Int) {
    for index in (first..<batch.count).reversed()
    where batch.tag(at: index) != ReservedTag.poll {
      let slot = slot(ofTag: batch.tag(at: index))
      noLongerUnsignalled(slot)
      releaseBounce(slot)
      releaseRoom(slot)
      table.unclaim(slot)
      let file = table[request: slot].file.number
      if !table[request: slot].mayWait {
        endWaiting(slot)
      } else if shares.hasParked(file) {
        // The parked requests were accepted after it.
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
  /// Whether the kernel may have to read its memory from a disk: pages of the caller's own that
  /// `mincore(2)` reports as not resident, as those of a mapped file that is cold. `io_submit(2)`
  /// reads them, NOWAIT or not.
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
      // This reads nothing of the memory, only whether its pages are resident.
      if unsafe ckernel_is_resident(bytes.baseAddress, UInt(bytes.count)) == 0 { return false }
    }
    return true
  }
}

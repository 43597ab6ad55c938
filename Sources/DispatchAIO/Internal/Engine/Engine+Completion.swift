// SPDX-License-Identifier: Apache-2.0
//
// Completion: the completions that were reaped, and whether each ends its request.

internal import PlatformLibc

extension Engine where Attachment: ~Copyable {
  /// The number of completions to deliver before the requests that their handlers make are
  /// submitted.
  ///
  /// A disk that has completed all requests together is idle until it gets the next: with two at
  /// first, throughput of reads at depth 32 is a quarter more than with all in one call, at the
  /// same processor time. Writes gain nothing below four. While the disk is busy, and without a
  /// disk, larger batches are cheaper.
  mutating func nextDeliveryBatch() -> Int {
    guard isForDisk else { return 128 }
    defer { deliveryLimit = min(deliveryLimit * 2, Self.largestDeliveryBatch) }
    return deliveryLimit
  }

  /// Reaps completions, unless some that were reaped before have not been taken.
  ///
  /// - Parameter nanoseconds: The longest wait for the first, if there is none; below 1 s.
  /// - Returns: Whether the kernel answered. If not, the driver retries after a delay, because the
  ///   eventfd has been cleared, and does not count completions that are in the ring already.
  mutating func reap(waiting nanoseconds: UInt64 = 0) -> Bool {
    guard events.isEmpty, shares.held > 0 || isPollArmed || nanoseconds > 0 else { return true }
    for attempt in 0..<8 {
      let answer = events.refill(from: kernel, waiting: attempt == 0 ? nanoseconds : 0)
      // Interrupted: none was taken.
      if answer == -Int(EINTR) { continue }
      guard answer >= 0 else { return false }
      if events.hasPollEvent {
        events.hasPollEvent = false
        isPollArmed = false
        isPollReady = true
      }
      if answer > 0 { account() }
      deliveryLimit = firstDeliveryLimit
      return true
    }
    return false
  }

  /// Returns the room in the kernel of the requests that were reaped.
  private mutating func account() {
    for index in 0..<events.count {
      let slot = slot(ofTag: events.tag(at: index))
      if table[request: slot].route == .offload { offloaded -= 1 } else { inKernel -= 1 }
      releaseRoom(slot)
    }
    if !blocked.isEmpty { retryBlocked() }
    checkAccounts()
  }

  /// The next completion; `nil` if there is none, or this turn has copied enough. Requests that the
  /// kernel completed and those that ended otherwise take turns, so that neither starves the other.
  mutating func next() -> Completion? {
    while !isBounceBudgetUsedUp {
      takesEndedFirst.toggle()
      if takesEndedFirst || events.isEmpty, let slot = ended.popFirst(in: table) {
        if let completion = conclude(slot, table[slot].answer) { return completion }
      } else if let event = events.removeFirst() {
        if let completion = conclude(slot(ofTag: event.tag), event.result) { return completion }
      } else if ended.isEmpty {
        return nil
      }
    }
    return nil
  }

  /// Ends a request, or makes it wait for another attempt.
  ///
  /// - Parameter answer: A count of bytes, or a negative errno: from the completion, from
  ///   `io_submit`, or from a system call.
  @inline(__always)
  private mutating func conclude(_ slot: UInt32, _ answer: Int) -> Completion? {
    noLongerUnsignalled(slot)
    endFill(slot)
    if answer == Request<Attachment>.wouldWait {
      counts.accepted -= 1
      return retire(slot, answer)
    }
    var (answer, isFileEnd) = (answer, false)
    switch table[request: slot].route {
    case .nowait: learn(slot, answer)
    case .direct: (answer, isFileEnd) = concludeDirect(slot, answer)
    case .inline, .offload, .syscall: break
    }
    if answer >= 0, table[request: slot].resumeOffset + answer >= table[request: slot].length {
      return succeed(slot, max(table[request: slot].transferred, table[request: slot].length))
    }
    return resolve(slot, answer, isFileEnd)
  }

  @inline(never)
  private mutating func resolve(
    _ slot: UInt32, _ answer: Int, _ isFileEnd: Bool
  ) -> Completion? {
    switch attempt(slot, answer, isFileEnd).resolve() {
    case .succeeded(let count):
      return succeed(slot, count)
    case .failed(let errno):
      return fail(slot, errno)
    case .continued(let resumeOffset, let transferred, let route, let isRetry):
      table[request: slot].resumeOffset = resumeOffset
      table[request: slot].transferred = transferred
      counts.continuations += 1
      requeue(slot, route, isRetry: isRetry, isFirst: true)
    case .retried(let route, let isRetry):
      if isRetry { counts.retries += 1 }
      if route == .syscall, table[request: slot].verb.isSync {
        table[request: slot].file.predictor.noteUnsupported(table[request: slot].verb)
      }
      requeue(slot, route, isRetry: isRetry, isFirst: false)
    case .shortened(let chunkLimit):
      table[request: slot].chunkLimit = chunkLimit
      counts.continuations += 1
      requeue(slot, table[request: slot].route, isRetry: false, isFirst: true)
    case .cached:
      table[request: slot].options.remove(.uncached)
      table[request: slot].file.predictor.noteUncachedUnsupported()
      requeue(slot, nil, isRetry: false, isFirst: true)
    }
    return nil
  }

  private mutating func attempt(_ slot: UInt32, _ answer: Int, _ isFileEnd: Bool) -> Attempt {
    let isRefused = table[request: slot].route == .nowait && answer == -Int(EAGAIN)
    var traits = table[request: slot].file.traits
    if table[request: slot].anyRangeWrite == .buffered {
      (traits.isDirect, traits.alignment) = (false, .none)
    }
    return Attempt(
      verb: table[request: slot].verb, route: table[request: slot].route, answer: answer,
      length: table[request: slot].length, resumeOffset: table[request: slot].resumeOffset,
      transferred: table[request: slot].transferred, chunkLimit: table[request: slot].chunkLimit,
      options: table[request: slot].options,
      mayRetry: table[request: slot].retries < Self.maximumRetries,
      mayOffload: policy != .inline,
      refusalRoute: isRefused ? routeAfterRefusal(slot) : nil, isFileEnd: isFileEnd,
      file: traits)
  }

  /// Records the answer to an attempt with RWF_NOWAIT.
  @inline(__always)
  private mutating func learn(_ slot: UInt32, _ answer: Int) {
    let verb = table[request: slot].verb
    if answer >= 0 {
      table[request: slot].file.predictor.accepted(verb)
    } else if answer == -Int(EAGAIN) {
      table[request: slot].file.predictor.refused(verb)
      counts.nowaitRefusals += 1
    } else if answer == -Int(EOPNOTSUPP), !table[request: slot].options.mayBeUnsupported {
      table[request: slot].file.predictor.noteUnsupported(verb)
      counts.nowaitRefusals += 1
    }
  }

  /// Makes a request wait for another attempt.
  private mutating func requeue(_ slot: UInt32, _ route: Route?, isRetry: Bool, isFirst: Bool) {
    if isRetry { table[request: slot].retries += 1 }
    let route = table[request: slot].requiredRoute ?? route
    table[request: slot].isRouteForced = route != nil
    if let route { table[request: slot].route = route }
    // A write's may be less because the disk is nearly full.
    if table[request: slot].verb == .read {
      table[request: slot].chunkLimit = table[request: slot].file.traits.maximumTransfer
    }
    table.unclaim(slot)
    enqueue(slot, isFirst: isFirst)
  }

  @inline(__always)
  private mutating func succeed(_ slot: UInt32, _ count: Int) -> Completion {
    if table[request: slot].verb == .write, count > 0 {
      table[request: slot].file.predictor.extended(to: table[request: slot].offset + Int64(count))
    }
    counts.succeeded += 1
    return retire(slot, count)
  }

  private mutating func fail(_ slot: UInt32, _ errno: Int32) -> Completion {
    if errno == ECANCELED { counts.cancelled += 1 } else { counts.failed += 1 }
    return retire(slot, -Int(errno))
  }

  @inline(__always)
  private mutating func retire(_ slot: UInt32, _ result: Int) -> Completion {
    table[slot].place = .arriving
    let request = table.retire(slot)
    request.file.release()
    return Completion(request: request, slot: slot, result: result)
  }
}

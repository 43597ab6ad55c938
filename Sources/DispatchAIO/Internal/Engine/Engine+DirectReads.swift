// SPDX-License-Identifier: Apache-2.0
//
// The direct attempts of reads: see DirectReads.

internal import CKernel
internal import PlatformLibc

extension Engine where Attachment: ~Copyable {
  /// The most bytes that one turn copies out of bounce buffers.
  static var bounceBudget: Int { 512 << 10 }

  /// Whether completions have to wait for the next turn, because enough has been copied in this
  /// one.
  var isBounceBudgetUsedUp: Bool {
    @inline(__always) get { bouncedBytes >= Self.bounceBudget }
  }

  /// The memory of a request's direct attempt; `nil` if it has to be offloaded.
  func directTransfer(_ slot: UInt32) -> DirectTransfer? {
    guard let direct = table[request: slot].file.directReads, direct.descriptor != nil,
      let transfer = table[request: slot].directTransfer(direct.alignment)
    else { return nil }
    if case .bounced = transfer, !bounceBuffers.hasRoom { return nil }
    return transfer
  }

  /// Adds the direct attempt of a request that was claimed to the batch.
  ///
  /// - Returns: `false` if there is no memory for a bounce buffer, or the descriptor is gone.
  mutating func prepareDirect(_ slot: UInt32, _ transfer: DirectTransfer) -> Bool {
    guard let direct = table[request: slot].file.directReads, let descriptor = direct.descriptor
    else { return false }
    let tag = table.tag(of: slot)
    switch transfer {
    case .inPlace(let count):
      table[request: slot].chunkLimit = count
      batch.append(
        table[request: slot], to: descriptor, tag: tag, event: event, isNowait: true)
    case .bounced(let start, let count, let wanted):
      guard let number = bounceBuffers.take() else { return false }
      table[request: slot].bounce = number
      table[request: slot].chunkLimit = wanted
      unsafe batch.appendRead(
        descriptor, into: bounceBuffers[number].baseAddress, count, at: start, tag: tag,
        event: event)
    }
    direct.remember(table[request: slot].chunkOffset)
    return true
  }

  /// Returns the bounce buffer of a request, if it has one.
  @inline(__always)
  mutating func releaseBounce(_ slot: UInt32) {
    guard table[request: slot].bounce >= 0 else { return }
    bounceBuffers.give(table[request: slot].bounce)
    table[request: slot].bounce = -1
  }

  /// Processes the answer to a direct attempt: copies what was read into a bounce buffer.
  ///
  /// - Returns: The answer for the bytes that the request wanted, and whether the file ends there.
  mutating func concludeDirect(_ slot: UInt32, _ answer: Int) -> (answer: Int, isFileEnd: Bool) {
    defer { releaseBounce(slot) }
    let file = table[request: slot].file
    // Cancelled: it was not submitted.
    guard let direct = file.directReads, answer != -Int(ECANCELED) else { return (answer, false) }
    counts.directReads += 1
    guard answer >= 0 else {
      if answer == -Int(EAGAIN) { counts.nowaitRefusals += 1 }
      // The file system has no such thing, or wants another alignment than it says.
      if answer == -Int(EINVAL) || answer == -Int(EOPNOTSUPP) { direct.noteUnsupported() }
      return (answer, false)
    }
    let alignment = direct.alignment
    let offset = Int(table[request: slot].chunkOffset)
    let wanted = table[request: slot].chunkLength
    let number = table[request: slot].bounce
    guard number >= 0 else {
      return (answer, answer < wanted && endsFile(offset + answer, alignment, file))
    }
    let start = alignment.roundDown(offset)
    let count = min(max(0, answer - (offset - start)), wanted)
    let bytes = unsafe UnsafeRawBufferPointer(
      rebasing: bounceBuffers[number][(offset - start)..<(offset - start) + count])
    unsafe table[request: slot].copy(bytes)
    bouncedBytes += count
    let isFileEnd =
      count < wanted && (answer == 0 || endsFile(start + answer, alignment, file))
    // Nothing of what was wanted, though the file does not end there: a system call tells.
    return (count == 0 && !isFileEnd ? -Int(EAGAIN) : count, isFileEnd)
  }

  /// Whether a direct read that ended at an offset has reached the end of the file.
  private func endsFile(_ offset: Int, _ alignment: BlockAlignment, _ file: OpenFile) -> Bool {
    file.traits.isLocal && alignment.roundDown(offset) != offset
  }

  /// The route of a read that is more than one copy, and is not in the page cache as far as is
  /// known without trying. To try would make the kernel read ahead what is then read directly, too.
  ///
  /// - Returns: `nil` if it is to be tried.
  mutating func routeOfLargeRead(_ slot: UInt32) -> Route? {
    let left = table[request: slot].length - table[request: slot].resumeOffset
    let file = table[request: slot].file
    guard left > NowaitPredictor.longestCopy, table[request: slot].verb == .read,
      file.directReads?.descriptor != nil
    else { return nil }
    let offset = table[request: slot].chunkOffset
    // The next pieces, so that each asks about few pages.
    let asked = Int64(min(left, 4 * NowaitPredictor.longestCopy))
    let wanted = min(asked, file.predictor.knownEnd - offset)
    guard wanted > 0 else { return nil }
    let cached = ckernel_cached_bytes(file.descriptor, offset, asked)
    return cached < 0 || cached >= wanted ? nil : routeAfterRefusal(slot)
  }

  /// The route of a read after the page cache has refused it: direct, unless it is one that was
  /// read directly before, and an offload thread may bring it into the page cache.
  mutating func routeAfterRefusal(_ slot: UInt32) -> Route? {
    guard table[request: slot].verb == .read, policy == .nonblocking,
      let direct = table[request: slot].file.directReads
    else { return nil }
    guard direct.descriptor != nil else {
      direct.wasRefused()
      return nil
    }
    if table[request: slot].length <= DirectReads.largestFill,
      direct.wasRead(at: table[request: slot].chunkOffset), direct.beginFill()
    {
      table[request: slot].fillsPageCache = true
      return .syscall
    }
    return .direct
  }

  /// Ends a request's attempt to bring its range into the page cache, if it made one.
  @inline(__always)
  mutating func endFill(_ slot: UInt32) {
    guard table[request: slot].fillsPageCache else { return }
    table[request: slot].fillsPageCache = false
    table[request: slot].file.directReads?.endFill()
  }
}

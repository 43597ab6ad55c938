// SPDX-License-Identifier: Apache-2.0

internal import CKernel

/// The control blocks of one `io_submit(2)`, filled just before the call. The kernel copies them
/// and the vectors during the call, so that one small set, always in the cache, serves every
/// request.
///
/// - Safety: `@safe` because `vectors` has `maximumElements` elements, lives as long as this does,
///   and is never filled beyond that.
@safe
struct SubmissionBatch: ~Copyable {
  /// The most requests of one call: more gain nothing, and these stay within the first-level cache.
  static let maximumCount = 128
  /// The most elements of one vectored request: the kernel's UIO_MAXIOV.
  static let maximumElements = 1024

  private static var nowait: UInt32 { UInt32(ckernel_rwf_nowait) }

  private(set) var count = 0
  private var blocks: ControlBlocks
  private let vectors: UnsafeMutablePointer<MemoryVector>
  private var vectorCount = 0

  init(capacity: Int) {
    // One more for the poll request.
    blocks = ControlBlocks(capacity: min(capacity, Self.maximumCount) + 1)
    unsafe vectors = .allocate(capacity: Self.maximumElements)
    unsafe vectors.initialize(repeating: MemoryVector(nil, count: 0), count: Self.maximumElements)
  }

  deinit {
    unsafe vectors.deallocate()
  }

  mutating func removeAll() {
    count = 0
    vectorCount = 0
  }

  /// Whether the batch has room for one more request with that operation.
  @inline(__always)
  func hasRoom(for operation: Operation) -> Bool {
    guard count < blocks.capacity - 1 else { return false }
    switch operation {
    case .read(let memory), .write(let memory):
      return !memory.isVector || vectorCount + memory.elements <= Self.maximumElements
    case .fsync, .fdatasync:
      return true
    }
  }

  /// Adds a request; there must be room for it.
  ///
  /// - Parameters:
  ///   - descriptor: The descriptor; if `nil`, the file's.
  ///   - event: The eventfd that counts the completion; if `nil`, none does.
  ///   - isNowait: Whether the kernel is to refuse what it would have to sleep for.
  @inline(__always)
  mutating func append<Attachment: ~Copyable>(
    _ request: borrowing Request<Attachment>, to descriptor: Int32? = nil, tag: UInt64,
    event: Int32?, isNowait: Bool
  ) {
    let file = descriptor ?? request.file.descriptor
    let flags = UInt32(request.options.rawValue) | (isNowait ? Self.nowait : 0)
    switch request.operation {
    case .read(let memory):
      let isVector = memory.isVector
      let (start, length) = unsafe pieces(memory, request.resumeOffset, request.chunkLimit)
      unsafe blocks.fill(
        count, isVector ? .readVector : .read, file, tag: tag, event: event, memory: start,
        count: length, offset: request.chunkOffset, flags: flags)
    case .write(let memory):
      let isVector = memory.isVector
      let (start, length) = unsafe pieces(memory, request.resumeOffset, request.chunkLimit)
      unsafe blocks.fill(
        count, isVector ? .writeVector : .write, file, tag: tag, event: event, memory: start,
        count: length, offset: request.chunkOffset, flags: flags)
    case .fsync:
      blocks.fill(count, .fsync, file, tag: tag, event: event)
    case .fdatasync:
      blocks.fill(count, .fdatasync, file, tag: tag, event: event)
    }
    count += 1
  }

  /// Adds a read, with RWF_NOWAIT, into memory other than its request's; there must be room for it.
  mutating func appendRead(
    _ descriptor: Int32, into memory: UnsafeMutableRawPointer?, _ length: Int, at offset: Int64,
    tag: UInt64, event: Int32
  ) {
    unsafe blocks.fill(
      count, .read, descriptor, tag: tag, event: event, memory: memory, count: length,
      offset: offset, flags: Self.nowait)
    count += 1
  }

  /// Adds a poll request for a descriptor to be readable, for which there is always room.
  mutating func appendPoll(_ descriptor: Int32, tag: UInt64, event: Int32) {
    blocks.fill(count, .pollReadable, descriptor, tag: tag, event: event)
    count += 1
  }

  /// The memory of a control block: the bytes of a single piece, or else the vectors, which are
  /// added.
  ///
  /// - Parameters:
  ///   - start: The number of bytes to leave out at the beginning.
  ///   - most: The number of bytes to take behind those, at the most.
  /// - Returns: The address, and the number of bytes or vectors.
  @inline(__always)
  private mutating func pieces(
    _ memory: Memory, _ start: Int, _ most: Int
  ) -> (UnsafeMutableRawPointer?, Int) {
    if memory.isVector {
      let first = unsafe UnsafeMutableRawPointer(vectors + vectorCount)
      return unsafe (first, append(memory, from: start, most: most))
    }
    let bytes = unsafe memory[0]
    return unsafe (
      bytes.baseAddress.map { unsafe $0 + start }, min(bytes.count - start, most)
    )
  }

  /// Adds the elements of a vectored request to `vectors`.
  ///
  /// - Returns: The number of elements added.
  private mutating func append(_ memory: Memory, from start: Int, most: Int) -> Int {
    let first = vectorCount
    var toSkip = start
    var toTake = most
    for index in 0..<memory.elements {
      let bytes = unsafe memory[index]
      let skipped = min(toSkip, bytes.count)
      let taken = min(toTake, bytes.count - skipped)
      toSkip -= skipped
      toTake -= taken
      if taken == 0 && start + bytes.count > 0 { continue }
      precondition(vectorCount < Self.maximumElements)
      unsafe vectors[vectorCount] = unsafe MemoryVector(
        bytes.baseAddress.map { unsafe $0 + skipped }, count: taken)
      vectorCount += 1
    }
    return vectorCount - first
  }

  /// Adds the elements of what is left of a write's memory, for `withVectors`.
  mutating func appendVectors<Attachment: ~Copyable>(of request: borrowing Request<Attachment>) {
    guard case .write(let memory) = request.operation else { return }
    _ = append(memory, from: request.resumeOffset, most: request.chunkLimit)
  }

  /// Calls `body` with the elements that were added.
  mutating func withVectors<Result>(_ body: (UnsafePointer<MemoryVector>, Int) -> Result) -> Result
  {
    unsafe body(vectors, vectorCount)
  }

  /// Calls `body` with the elements of what is left of a request's memory, as system calls take
  /// them.
  mutating func withVectors<Attachment: ~Copyable, Result>(
    of memory: Memory, _ request: borrowing Request<Attachment>,
    _ body: (UnsafePointer<MemoryVector>, Int) -> Result
  ) -> Result {
    removeAll()
    let count = append(memory, from: request.resumeOffset, most: request.chunkLimit)
    return unsafe body(vectors, count)
  }

  /// The tag that the request at `index` was added with.
  @inline(__always)
  func tag(at index: Int) -> UInt64 {
    precondition(index < count)
    return blocks.tag(at: index)
  }

  /// Submits the requests from `index` on.
  ///
  /// - Returns: The answer of `Kernel.submit`.
  @inline(__always)
  func submit<K: Kernel>(from index: Int, to kernel: K) -> Int {
    blocks.submit(index..<count, to: kernel)
  }
}

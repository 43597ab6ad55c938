// SPDX-License-Identifier: Apache-2.0

internal import CLibAIO
internal import CLinux
internal import Glibc

/// The control blocks of one `io_submit`, built in place just before the call. The kernel copies
/// them and the vectors during the call, so that one small set, always in the cache, serves every
/// request.
@safe
struct SubmissionBatch: ~Copyable {
  /// More than this in one call gains nothing, and fewer stay within the first-level cache.
  static let maximumCount = 128
  /// The most elements of one vectored request: the kernel's UIO_MAXIOV.
  static let maximumElements = 1024

  private(set) var count = 0
  private let capacity: Int
  private let blocks: UnsafeMutablePointer<iocb>
  /// `blocks[0], blocks[1], …` for good: what `io_submit` takes.
  private let pointers: UnsafeMutablePointer<UnsafeMutablePointer<iocb>?>
  private let vectors: UnsafeMutablePointer<iovec>
  private var vectorCount = 0

  init(capacity: Int) {
    // One more for the poll request.
    self.capacity = min(capacity, Self.maximumCount) + 1
    unsafe blocks = .allocate(capacity: self.capacity)
    unsafe blocks.initialize(repeating: iocb(), count: self.capacity)
    unsafe pointers = .allocate(capacity: self.capacity)
    for index in 0..<self.capacity {
      unsafe (pointers + index).initialize(to: blocks + index)
    }
    unsafe vectors = .allocate(capacity: Self.maximumElements)
    unsafe vectors.initialize(repeating: iovec(), count: Self.maximumElements)
  }

  deinit {
    unsafe blocks.deallocate()
    unsafe pointers.deallocate()
    unsafe vectors.deallocate()
  }

  mutating func removeAll() {
    count = 0
    vectorCount = 0
  }

  /// Whether the batch has room for one more, with that much memory.
  @inline(__always)
  func hasRoom(for operation: Operation) -> Bool {
    guard count < capacity - 1 else { return false }
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
  ///   - event: the eventfd that counts the completion; `nil`: none does.
  ///   - isNowait: whether the kernel is to refuse what it would have to sleep for.
  @inline(__always)
  mutating func append<Attachment>(
    _ request: borrowing Request<Attachment>, tag: UInt64, event: Int32?, isNowait: Bool
  ) {
    precondition(count < capacity)
    var block = unsafe iocb()
    unsafe block.data = UnsafeMutableRawPointer(bitPattern: UInt(tag))
    unsafe block.aio_fildes = request.file.descriptor
    switch request.operation {
    case .read(let memory):
      unsafe describe(
        memory, from: request.resumeOffset, most: request.chunkLimit, plain: IO_CMD_PREAD,
        vectored: IO_CMD_PREADV, in: &block)
      unsafe block.u.c.offset = request.chunkOffset
    case .write(let memory):
      unsafe describe(
        memory, from: request.resumeOffset, most: request.chunkLimit, plain: IO_CMD_PWRITE,
        vectored: IO_CMD_PWRITEV, in: &block)
      unsafe block.u.c.offset = request.chunkOffset
    case .fsync:
      unsafe block.aio_lio_opcode = Int16(IO_CMD_FSYNC.rawValue)
    case .fdatasync:
      unsafe block.aio_lio_opcode = Int16(IO_CMD_FDSYNC.rawValue)
    }
    if isNowait { unsafe block.aio_rw_flags = UInt32(clinux_rwf_nowait) }
    if let event {
      unsafe block.u.c.flags = 1  // IOCB_FLAG_RESFD
      unsafe block.u.c.resfd = UInt32(bitPattern: event)
    }
    unsafe blocks[count] = unsafe block
    count += 1
  }

  /// Adds a poll request for a descriptor to be readable, if there is room for it.
  mutating func appendPoll(_ descriptor: Int32, tag: UInt64, event: Int32) {
    guard count < capacity else { return }
    var block = unsafe Self.poll(descriptor, tag: tag)
    unsafe block.u.c.flags = 1  // IOCB_FLAG_RESFD
    unsafe block.u.c.resfd = UInt32(bitPattern: event)
    unsafe blocks[count] = unsafe block
    count += 1
  }

  /// A request that completes once a descriptor is readable: `IOCB_CMD_POLL`.
  static func poll(_ descriptor: Int32, tag: UInt64) -> iocb {
    var block = unsafe iocb()
    unsafe block.data = UnsafeMutableRawPointer(bitPattern: UInt(tag))
    unsafe block.aio_fildes = descriptor
    unsafe block.aio_lio_opcode = Int16(IO_CMD_POLL.rawValue)
    unsafe block.u.poll.events = Int32(POLLIN)
    return unsafe block
  }

  /// - Parameters:
  ///   - start: how many bytes of the memory to leave out, at its beginning.
  ///   - most: how many bytes after those to take.
  @inline(__always)
  private mutating func describe(
    _ memory: Memory, from start: Int, most: Int, plain: io_iocb_cmd, vectored: io_iocb_cmd,
    in block: inout iocb
  ) {
    guard memory.isVector else {
      let bytes = unsafe memory[0]
      unsafe block.aio_lio_opcode = Int16(plain.rawValue)
      unsafe block.u.c.buf = bytes.baseAddress.map { unsafe $0 + start }
      unsafe block.u.c.nbytes = UInt(min(bytes.count - start, most))
      return
    }
    unsafe block.aio_lio_opcode = Int16(vectored.rawValue)
    unsafe block.u.c.buf = UnsafeMutableRawPointer(vectors + vectorCount)
    unsafe block.u.c.nbytes = UInt(append(memory, from: start, most: most))
  }

  /// Adds the elements of a vectored request to `vectors`.
  ///
  /// - Returns: how many.
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
      unsafe vectors[vectorCount] = unsafe iovec(
        iov_base: bytes.baseAddress.map { unsafe $0 + skipped }, iov_len: taken)
      vectorCount += 1
    }
    return vectorCount - first
  }

  /// Adds the elements of what is left of a write's memory, for `withVectors`.
  mutating func appendVectors<Attachment>(of request: borrowing Request<Attachment>) {
    guard case .write(let memory) = request.operation else { return }
    _ = append(memory, from: request.resumeOffset, most: request.chunkLimit)
  }

  /// Calls `body` with the elements that were added.
  mutating func withVectors<Result>(_ body: (UnsafePointer<iovec>, Int) -> Result) -> Result {
    unsafe body(vectors, vectorCount)
  }

  /// Calls `body` with the elements of what is left of a request's memory, as system calls take
  /// them.
  mutating func withVectors<Attachment, Result>(
    of memory: Memory, _ request: borrowing Request<Attachment>,
    _ body: (UnsafePointer<iovec>, Int) -> Result
  ) -> Result {
    removeAll()
    let count = append(memory, from: request.resumeOffset, most: request.chunkLimit)
    return unsafe body(vectors, count)
  }

  /// The tag that the request at `index` was added with.
  func tag(at index: Int) -> UInt64 {
    precondition(index < count)
    return unsafe UInt64(UInt(bitPattern: blocks[index].data))
  }

  /// Submits the requests from `index` on.
  ///
  /// - Returns: what `Kernel.submit` returns.
  @inline(__always)
  func submit<K: Kernel>(from index: Int, to kernel: K) -> Int {
    precondition(index <= count)
    return unsafe kernel.submit(pointers + index, count: count - index)
  }
}

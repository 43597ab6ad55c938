// SPDX-License-Identifier: Apache-2.0
//
// The one place that fills a control block. It takes numbers and pointers, and knows no requests.

internal import CKernel
internal import PlatformLibc

/// A request of kernel AIO, as `io_submit(2)` takes it.
typealias ControlBlock = ckernel_control_block
/// A completion of one, as the ring has it.
typealias CompletionEvent = ckernel_completion

/// An operation of kernel AIO.
enum Command: CaseIterable {
  case read, readVector, write, writeVector, fsync, fdatasync
  /// Completes once the descriptor is readable.
  case pollReadable

  /// Its number in linux/aio_abi.h.
  var number: UInt16 {
    @inline(__always) get {
      switch self {
      case .read: 0
      case .write: 1
      case .fsync: 2
      case .fdatasync: 3
      case .pollReadable: 5
      case .readVector: 7
      case .writeVector: 8
      }
    }
  }
}

extension ControlBlock {
  /// A control block that transfers no memory: a sync or a poll.
  ///
  /// - Parameters:
  ///   - tag: The number that the completion carries.
  ///   - event: The eventfd that counts the completion; if `nil`, none does.
  @inline(__always)
  init(_ command: Command, _ descriptor: Int32, tag: UInt64, event: Int32?) {
    self.init()
    data = tag
    self.descriptor = descriptor
    opcode = command.number
    if command == .pollReadable { memory = UInt64(POLLIN) }
    if let event {
      flags = 1
      self.event = UInt32(bitPattern: event)
    }
  }

  /// Adds the memory of a read or a write.
  ///
  /// - Parameters:
  ///   - memory: The bytes; for a vectored command, the vectors.
  ///   - count: The number of bytes; for a vectored command, of vectors.
  ///   - offset: The offset in the file, in bytes.
  ///   - flags: RWF_NOWAIT and its like.
  @inline(__always)
  mutating func setTransfer(
    _ memory: UnsafeMutableRawPointer?, _ count: Int, at offset: Int64, flags: UInt32
  ) {
    // The address is only a number here: the kernel uses the memory, which the caller keeps.
    self.memory = UInt64(UInt(bitPattern: memory))
    self.count = UInt64(count)
    self.offset = offset
    rw_flags = flags
  }
}

/// A piece of memory, as vectored commands take it.
typealias MemoryVector = iovec

extension MemoryVector {
  @inline(__always)
  init(_ start: UnsafeMutableRawPointer?, count: Int) {
    unsafe self.init(iov_base: start, iov_len: count)
  }
}

/// A fixed number of control blocks, in the form that `io_submit(2)` takes.
///
/// - Safety: `@safe` because both allocations have `capacity` elements, live as long as this does,
///   and every index is checked.
@safe
struct ControlBlocks: ~Copyable {
  let capacity: Int
  private let blocks: UnsafeMutablePointer<ControlBlock>
  /// `blocks[0], blocks[1], …`, never changed.
  private let pointers: UnsafeMutablePointer<UnsafeMutablePointer<ControlBlock>?>

  init(capacity: Int) {
    self.capacity = capacity
    unsafe blocks = .allocate(capacity: capacity)
    unsafe blocks.initialize(repeating: ControlBlock(), count: capacity)
    unsafe pointers = .allocate(capacity: capacity)
    for index in 0..<capacity {
      unsafe (pointers + index).initialize(to: blocks + index)
    }
  }

  deinit {
    unsafe blocks.deallocate()
    unsafe pointers.deallocate()
  }

  /// Fills the block at `index` with a sync or a poll.
  @inline(__always)
  mutating func fill(
    _ index: Int, _ command: Command, _ descriptor: Int32, tag: UInt64, event: Int32?
  ) {
    precondition(index < capacity)
    unsafe blocks[index] = ControlBlock(command, descriptor, tag: tag, event: event)
  }

  /// Fills the block at `index` with a read or a write. The memory must stay until the completion.
  @inline(__always)
  mutating func fill(
    _ index: Int, _ command: Command, _ descriptor: Int32, tag: UInt64, event: Int32?,
    memory: UnsafeMutableRawPointer?, count: Int, offset: Int64, flags: UInt32
  ) {
    precondition(index < capacity)
    var block = ControlBlock(command, descriptor, tag: tag, event: event)
    unsafe block.setTransfer(memory, count, at: offset, flags: flags)
    unsafe blocks[index] = block
  }

  /// The tag that the block at `index` was filled with.
  @inline(__always)
  func tag(at index: Int) -> UInt64 {
    precondition(index < capacity)
    return unsafe blocks[index].data
  }

  /// Submits the blocks of a range.
  ///
  /// - Returns: The answer of `Kernel.submit`.
  @inline(__always)
  func submit<K: Kernel>(_ range: Range<Int>, to kernel: K) -> Int {
    precondition(range.upperBound <= capacity)
    return unsafe kernel.submit(pointers + range.lowerBound, count: range.count)
  }
}

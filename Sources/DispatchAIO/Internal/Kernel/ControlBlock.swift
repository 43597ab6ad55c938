// SPDX-License-Identifier: Apache-2.0
//
// The one place that fills an iocb. It takes numbers and pointers, and knows no requests.

internal import CLibAIO
internal import Glibc

/// An operation of kernel AIO.
enum Command {
  case read, readVector, write, writeVector, fsync, fdatasync
  /// Completes once the descriptor is readable.
  case pollReadable

  @inline(__always)
  fileprivate var number: Int16 {
    switch self {
    case .read: Int16(IO_CMD_PREAD.rawValue)
    case .readVector: Int16(IO_CMD_PREADV.rawValue)
    case .write: Int16(IO_CMD_PWRITE.rawValue)
    case .writeVector: Int16(IO_CMD_PWRITEV.rawValue)
    case .fsync: Int16(IO_CMD_FSYNC.rawValue)
    case .fdatasync: Int16(IO_CMD_FDSYNC.rawValue)
    case .pollReadable: Int16(IO_CMD_POLL.rawValue)
    }
  }
}

extension iocb {
  /// A control block that transfers no memory: a sync or a poll.
  ///
  /// - Parameters:
  ///   - tag: The number that the completion carries.
  ///   - event: The eventfd that counts the completion; if `nil`, none does.
  @inline(__always)
  init(_ command: Command, _ descriptor: Int32, tag: UInt64, event: Int32?) {
    unsafe self = unsafe iocb()
    unsafe data = UnsafeMutableRawPointer(bitPattern: UInt(tag))
    unsafe aio_fildes = descriptor
    unsafe aio_lio_opcode = command.number
    if command == .pollReadable { unsafe u.poll.events = Int32(POLLIN) }
    if let event {
      unsafe u.c.flags = 1  // IOCB_FLAG_RESFD
      unsafe u.c.resfd = UInt32(bitPattern: event)
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
    unsafe u.c.buf = unsafe memory
    unsafe u.c.nbytes = UInt(count)
    unsafe u.c.offset = offset
    unsafe aio_rw_flags = flags
  }
}

/// A piece of memory, as vectored commands take it. The type is one of libaio's for the compiler,
/// which only this folder imports.
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
  private let blocks: UnsafeMutablePointer<iocb>
  /// `blocks[0], blocks[1], …`, never changed.
  private let pointers: UnsafeMutablePointer<UnsafeMutablePointer<iocb>?>

  init(capacity: Int) {
    self.capacity = capacity
    unsafe blocks = .allocate(capacity: capacity)
    unsafe blocks.initialize(repeating: iocb(), count: capacity)
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
    unsafe blocks[index] = unsafe iocb(command, descriptor, tag: tag, event: event)
  }

  /// Fills the block at `index` with a read or a write. The memory must stay until the completion.
  @inline(__always)
  mutating func fill(
    _ index: Int, _ command: Command, _ descriptor: Int32, tag: UInt64, event: Int32?,
    memory: UnsafeMutableRawPointer?, count: Int, offset: Int64, flags: UInt32
  ) {
    precondition(index < capacity)
    var block = unsafe iocb(command, descriptor, tag: tag, event: event)
    unsafe block.setTransfer(memory, count, at: offset, flags: flags)
    unsafe blocks[index] = unsafe block
  }

  /// The tag that the block at `index` was filled with.
  @inline(__always)
  func tag(at index: Int) -> UInt64 {
    precondition(index < capacity)
    return unsafe UInt64(UInt(bitPattern: blocks[index].data))
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

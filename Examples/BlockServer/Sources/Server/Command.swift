// SPDX-License-Identifier: Apache-2.0
//
// A request from its arrival to its reply: its memory, its disk requests, and the bytes to send.
// Used by the connection and the loop that it belongs to, on the loop's queue.

import DispatchAIO
import Glibc

/// - Safety: `@unchecked Sendable` because it is confined to its loop's queue, except while a
///   worker queue has it, when nobody else touches it.
final class Command: @unchecked Sendable {
  /// The most pieces of one large request in flight at once. A small request behind it waits for no
  /// more than those.
  static let window = 4

  /// Unowned, because the loop keeps all its commands.
  unowned let loop: ServerLoop
  /// The connection that made the request; `nil` while the command is unused.
  var connection: Connection?
  var request = Request(command: .flush, flags: [], cookie: 0, offset: 0, length: 0)

  /// The bytes charged to the connection's budget for it.
  var cost = 0
  /// The bytes charged to the loop's memory for it.
  var memory = 0
  /// The large read that this is a part of, if it is one.
  var stream: StreamedRead?

  // The data: in buffers of `BufferPool.largest` bytes; the last may be smaller.
  var buffers: [PooledBuffer] = []
  /// The range of the blocks on disk that contain the data: offset, and number of bytes.
  var start: UInt64 = 0
  var count = 0
  /// The position of the request's own bytes in those blocks.
  var skip = 0
  /// The number of bytes of a write's payload received so far.
  var payload = 0

  /// Its range, locked or waited for.
  var ticket: RangeLocks.Ticket?
  /// Whether that is, or will be, an exclusive lock.
  var isExclusive = false
  // Disk requests.
  /// The number of blocks that a read-modify-write still waits for.
  var edges = 0
  /// Whether such a block was missing, because somebody has made the file shorter.
  var isShort = false
  private var nextPiece = 0
  private var outstanding = 0
  private var transferred = 0
  var error: AIOError?

  // The reply: a head, and bytes of the buffers.
  let head: UnsafeMutableRawPointer
  var headCount = 0
  var replyCount = 0

  /// The completion handler of all its disk requests: one, so that a request allocates none.
  private var completion: AIOCompletion!

  init(loop: ServerLoop) {
    self.loop = loop
    head = .allocate(byteCount: Replies.room, alignment: 8)
    // Unowned, because the command owns the closure, and the loop keeps the command.
    completion = { [unowned self] in completed($0) }
  }

  deinit {
    head.deallocate()
  }

  /// The request's range of the export.
  var range: Range<UInt64> { request.offset..<request.offset + UInt64(request.length) }

  // MARK: Memory

  /// Notes the blocks that the request touches, for which it needs buffers.
  @inline(__always)
  func setBlocks(_ export: Export) {
    start = export.down(request.offset, to: export.block)
    skip = Int(request.offset - start)
    count = Int(export.up(range.upperBound, to: export.block) - start)
  }

  /// The number of bytes that there are no buffers for yet.
  private var unbuffered: Int { count - buffers.count * BufferPool.largest }

  /// The size of the next buffer, in bytes; `nil` if there are all.
  var nextBuffer: Int? {
    unbuffered > 0 ? BufferPool.cost(min(unbuffered, BufferPool.largest)) : nil
  }

  /// The number of bytes of a write's payload that there is no room for yet, of those that remain.
  func missing(of remaining: Int) -> Int {
    max(0, payload + remaining + skip - buffers.count * BufferPool.largest)
  }

  func takeBuffer() {
    buffers.append(loop.pool.take(min(unbuffered, BufferPool.largest)))
  }

  @inline(__always)
  func takeBuffers() {
    while unbuffered > 0 { takeBuffer() }
  }

  func giveBuffers() {
    for buffer in buffers { loop.pool.give(buffer) }
    buffers.removeAll(keepingCapacity: true)
  }

  /// The contiguous memory of the request's own bytes that begins at `position`: up to `end`, or to
  /// the end of a buffer.
  @inline(__always)
  func memory(from position: Int, upTo end: Int) -> UnsafeMutableRawBufferPointer {
    let place = skip + position
    let (index, within) = (place / BufferPool.largest, place % BufferPool.largest)
    return UnsafeMutableRawBufferPointer(
      start: buffers[index].base + within, count: min(end - position, BufferPool.largest - within))
  }

  /// Copies received payload to its place.
  func take(payload bytes: UnsafeRawBufferPointer) {
    var rest = bytes
    while !rest.isEmpty {
      let memory = memory(from: payload, upTo: payload + rest.count)
      memory.copyMemory(from: .init(rebasing: rest[..<memory.count]))
      payload += memory.count
      rest = .init(rebasing: rest[memory.count...])
    }
  }

  // MARK: Disk

  /// Reads or writes all of its blocks, then calls `loop.transferred`.
  @inline(__always)
  func transfer() {
    (nextPiece, outstanding, transferred) = (0, 0, 0)
    submit()
  }

  @inline(__always)
  private func submit() {
    let connection = connection!  // A command in use has one.
    while nextPiece < buffers.count && outstanding < Self.window && error == nil
      && !connection.isClosed
    {
      outstanding += 1
      let piece = nextPiece
      nextPiece += 1
      loop.submit(.piece(self, piece), of: connection)
    }
  }

  /// Hands a part of the data to the context.
  @inline(__always)
  func submit(_ piece: Int) throws(AIOError) {
    let from = piece * BufferPool.largest
    let length = min(BufferPool.largest, count - from)
    let whole = buffers[piece].buffer
    let buffer = length == whole.count ? whole : whole[..<length]
    let offset = Int64(start) + Int64(from)
    let file = connection!.export.file  // A command in use has a connection.
    if request.command == .write {
      try loop.context.write(file, at: offset, from: buffer, completion: completion)
    } else {
      try loop.context.read(file, at: offset, into: buffer, completion: completion)
    }
  }

  @inline(__always)
  func completed(_ result: Result<Int, AIOError>) {
    outstanding -= 1
    loop.diskRequestEnded()
    switch result {
    case .success(let count): transferred += count
    case .failure(let error): self.error = self.error ?? error
    }
    submit()
    if outstanding == 0 { loop.transferred(self) }
  }

  /// Whether a read has all that the file has: it may end within the last block, and nowhere else.
  @inline(__always)
  func isComplete(_ export: Export) -> Bool {
    transferred == count || UInt64(transferred) == export.size - start
  }

  // MARK: The reply

  /// Sets bytes to send after the head that are not read from the disk.
  func setExtra(_ bytes: [UInt8]) {
    giveBuffers()
    skip = 0
    var rest = bytes[...]
    while !rest.isEmpty {
      let piece = rest.prefix(BufferPool.largest)
      let buffer = loop.pool.take(piece.count)
      piece.withUnsafeBytes { buffer.base.copyMemory(from: $0.baseAddress!, byteCount: $0.count) }
      buffers.append(buffer)
      rest = rest.dropFirst(piece.count)
    }
    replyCount = bytes.count
  }

  /// Makes the command as new, for its next request.
  func reset() {
    giveBuffers()
    (connection, stream, ticket, error) = (nil, nil, nil, nil)
    (isShort, isExclusive) = (false, false)
    (cost, memory, start, count, skip, payload) = (0, 0, 0, 0, 0, 0)
    (headCount, replyCount) = (0, 0)
  }
}

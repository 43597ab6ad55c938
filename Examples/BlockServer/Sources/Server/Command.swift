// SPDX-License-Identifier: Apache-2.0
//
// A request on its way from the client through the disk, and its reply. Commands and their buffers
// are used again, so that a request costs no allocation once a loop is warm.

import DispatchAIO
import Glibc

/// - Safety: `@unchecked Sendable` because it is confined to its loop's queue; while a worker has
///   it, nobody else touches it.
final class Command: @unchecked Sendable {
  /// How much of one large request may be with the disk at once; the next small request waits
  /// behind no more than that.
  static let window = 4

  /// Alive: the loop keeps all its commands.
  unowned let loop: ServerLoop
  /// Whose request it is; `nil` while the command is unused.
  var connection: Connection?
  var request = Request(command: .flush, flags: [], cookie: 0, offset: 0, length: 0)

  /// What is charged to the connection for it.
  var cost = 0
  var isLarge = false
  /// The part of a large read that it is.
  var stream: StreamedRead?

  // The data, in buffers of `BufferPool.largest`, but for the last.
  var buffers: [PooledBuffer] = []
  /// The blocks on the disk that the data lies in: where they begin, and how many bytes.
  var start: UInt64 = 0
  var count = 0
  /// Where in them the request's own bytes begin.
  var skip = 0
  /// How much of a write's payload has come.
  var payload = 0

  var ticket: RangeLocks.Ticket?
  /// How many blocks a read-modify-write still waits for.
  var edges = 0
  /// Whether such a block was not there: somebody has made the file shorter.
  var isShort = false
  private var nextPiece = 0
  private var outstanding = 0
  private var moved = 0
  var error: AIOError?

  // The reply: a head, and bytes of the buffers.
  let head: UnsafeMutableRawPointer
  var headCount = 0
  var replyCount = 0

  /// The one closure for all its disk requests.
  private var completion: AIOCompletion!

  init(loop: ServerLoop) {
    self.loop = loop
    head = .allocate(byteCount: Replies.room, alignment: 8)
    // Unowned, as it is this command's own; the loop keeps the command.
    completion = { [unowned self] in completed($0) }
  }

  deinit {
    head.deallocate()
  }

  /// The bytes of the export that the request is about.
  var range: Range<UInt64> { request.offset..<request.offset + UInt64(request.length) }

  // MARK: Memory

  /// Takes buffers for the blocks that the request touches.
  @inline(__always)
  func takeBuffers(_ export: Export) {
    start = export.down(request.offset, to: export.block)
    skip = Int(request.offset - start)
    count = Int(export.up(range.upperBound, to: export.block) - start)
    var rest = count
    while rest > 0 {
      buffers.append(loop.pool.take(min(rest, BufferPool.largest)))
      rest -= BufferPool.largest
    }
  }

  func giveBuffers() {
    for buffer in buffers { loop.pool.give(buffer) }
    buffers.removeAll(keepingCapacity: true)
  }

  /// The memory of the request's own bytes from `position` on, piece by piece.
  @inline(__always)
  func memory(from position: Int, upTo end: Int) -> UnsafeMutableRawBufferPointer {
    let place = skip + position
    let (index, within) = (place / BufferPool.largest, place % BufferPool.largest)
    return UnsafeMutableRawBufferPointer(
      start: buffers[index].base + within, count: min(end - position, BufferPool.largest - within))
  }

  /// Puts payload in its place.
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
    (nextPiece, outstanding, moved) = (0, 0, 0)
    submit()
  }

  @inline(__always)
  private func submit() {
    while nextPiece < buffers.count && outstanding < Self.window && error == nil {
      outstanding += 1
      let piece = nextPiece
      nextPiece += 1
      submit(piece)
    }
  }

  /// Again, after the context was full.
  func submit(_ piece: Int) {
    let from = piece * BufferPool.largest
    let length = min(BufferPool.largest, count - from)
    let whole = buffers[piece].buffer
    let buffer = length == whole.count ? whole : whole[..<length]
    let offset = Int64(start) + Int64(from)
    let file = connection!.export.file  // A command in use has a connection.
    do throws(AIOError) {
      if request.command == .write {
        try loop.context.write(file, at: offset, from: buffer, completion: completion)
      } else {
        try loop.context.read(file, at: offset, into: buffer, completion: completion)
      }
    } catch {
      if error.isRetryable { return loop.waitForRoom { [self] in submit(piece) } }
      // Not within the call: the caller counts on a completion that comes later.
      loop.sockets.post { [self] in completed(.failure(error)) }
    }
  }

  @inline(__always)
  private func completed(_ result: Result<Int, AIOError>) {
    outstanding -= 1
    switch result {
    case .success(let count): moved += count
    case .failure(let error): self.error = self.error ?? error
    }
    if nextPiece < buffers.count && error == nil { submit() }
    if outstanding == 0 { loop.transferred(self) }
  }

  /// Whether a read has got what the file has: it may end within the last block, and nowhere else.
  @inline(__always)
  func isComplete(_ export: Export) -> Bool {
    moved == count || UInt64(moved) == export.size - start
  }

  // MARK: The reply

  /// Bytes that are not the disk's, to send after the head.
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

  /// Makes it as new.
  func reset() {
    giveBuffers()
    (connection, stream, ticket, error) = (nil, nil, nil, nil)
    isShort = false
    (cost, isLarge, start, count, skip, payload) = (0, false, 0, 0, 0, 0)
    (headCount, replyCount) = (0, 0)
  }
}

/// A large read whose reply is sent in chunks, each as soon as it is read. Confined to its loop.
final class StreamedRead {
  let request: Request
  /// Where the next part begins.
  var next: UInt64
  /// Parts that are on their way from the disk.
  var unread = 0
  /// Parts that are anywhere between the disk and the socket.
  var unsent = 0
  var error: (NBD.ErrorCode, String)?
  let cost: Int

  init(_ request: Request, cost: Int) {
    self.request = request
    self.cost = cost
    next = request.offset
  }

  var end: UInt64 { request.offset + UInt64(request.length) }
}

// SPDX-License-Identifier: Apache-2.0

/// The operation of a request: one case for each verb.
enum Operation {
  case read(into: Memory)
  case write(from: Memory)
  case fsync
  case fdatasync

  var verb: Verb {
    @inline(__always) get {
      switch self {
      case .read: .read
      case .write: .write
      case .fsync: .fsync
      case .fdatasync: .fdatasync
      }
    }
  }
}

/// An operation without its memory.
enum Verb {
  case read, write, fsync, fdatasync

  var isSync: Bool {
    @inline(__always) get { self == .fsync || self == .fdatasync }
  }
}

/// The way of a request to the kernel.
enum Route: Equatable {
  /// `io_submit` on the loop, as it is: it cannot sleep.
  case inline
  /// `io_submit` on the loop with RWF_NOWAIT: refused where the kernel would have to sleep.
  case nowait
  /// `io_submit` on an offload thread, into the same kernel context.
  case offload
  /// `io_submit` on the loop, of a read past the page cache, through the file's descriptor with
  /// O_DIRECT, with RWF_NOWAIT.
  case direct
  /// A plain system call on an offload thread: for what is synchronous anyway, and for what kernel
  /// AIO does not have.
  case syscall

  /// Whether the loop itself submits it.
  var isOnLoop: Bool {
    @inline(__always) get { self != .offload && self != .syscall }
  }
}

/// A piece of memory, and the owner that keeps it alive.
///
/// - Safety: `@safe` although it holds a raw pointer: the owner keeps the memory, or the caller has
///   promised to, as the docs of the verbs that take pointers say.
@safe
struct Piece {
  let bytes: UnsafeMutableRawBufferPointer
  /// If `nil`, the caller keeps the memory by promise.
  let owner: BufferStorage?
}

/// The memory of a read or a write. No existential is in here: it would make each move of a request
/// a call, which doubles the library's own time.
///
/// The pieces of a vectored request are the array that the caller gave, so that no other one is
/// allocated.
///
/// - Safety: `@safe` for the reason that `Piece` is.
@safe
enum Memory {
  case piece(Piece)
  case buffers([AIOBuffer])
  case raws([UnsafeMutableRawBufferPointer])
  /// Those of a write.
  case constants([UnsafeRawBufferPointer])

  /// One piece of the caller's own memory.
  @inline(__always)
  static func raw(_ memory: UnsafeMutableRawBufferPointer) -> Memory {
    unsafe .piece(Piece(bytes: memory, owner: nil))
  }

  /// The number of pieces.
  var elements: Int {
    @inline(__always) get {
      switch self {
      case .piece: 1
      case .buffers(let buffers): buffers.count
      case .raws(let raws): unsafe raws.count
      case .constants(let constants): unsafe constants.count
      }
    }
  }

  /// The bytes of one piece.
  @inline(__always)
  subscript(index: Int) -> UnsafeMutableRawBufferPointer {
    switch self {
    case .piece(let piece): unsafe piece.bytes
    case .buffers(let buffers): unsafe buffers[index].unsafeBytes
    case .raws(let raws): unsafe raws[index]
    // The memory is mutable in name only: a write does not change it.
    case .constants(let constants):
      unsafe UnsafeMutableRawBufferPointer(mutating: constants[index])
    }
  }

  /// Whether the request is vectored; a single piece is a plain read or write.
  var isVector: Bool {
    @inline(__always) get {
      switch self {
      case .piece: false
      case .buffers, .raws, .constants: true
      }
    }
  }

  /// Whether the memory is the caller's own, of which nothing is known: it may be a mapping whose
  /// pages are on a disk.
  var isForeign: Bool {
    @inline(__always) get {
      switch self {
      case .piece(let piece): piece.owner == nil
      case .buffers: false
      case .raws(let raws): unsafe !raws.isEmpty
      case .constants(let constants): unsafe !constants.isEmpty
      }
    }
  }
}

/// An accepted request: its operation and its file, which it keeps alive, and the state of its
/// transfer.
///
/// Not copyable, because each copy would retain and release three references, which took a third of
/// the library's own time.
struct Request<Attachment: ~Copyable>: ~Copyable {
  let operation: Operation
  let verb: Verb
  let file: OpenFile
  /// The offset in the file, in bytes; 0 for a sync. That of an append is known once it was made.
  var offset: Int64
  /// The number of bytes of all pieces; 0 for a sync.
  let length: Int
  /// A value of the driver's, which it gets back with the completion.
  let attachment: Attachment

  /// Whether it may wait for room or for an offload thread. If not, it ends where it would have to,
  /// with `wouldWait`: its maker has no way to cancel it, and makes another that may wait.
  let mayWait: Bool

  /// The result of a request that would have to wait.
  static var wouldWait: Int { .min }

  /// The options of each attempt.
  var options: RequestOptions
  /// The route of the last attempt; of the next one if `isRouteForced`.
  var route = Route.inline
  /// Whether the next attempt must take `route`.
  var isRouteForced = false
  /// Whether it counts against its file's share of the kernel's room.
  var holdsRoom = false
  /// Whether it was submitted without the eventfd flag, because it is complete when `io_submit(2)`
  /// returns.
  var isUnsignalled = false
  /// Whether the attempt brings its range into the page cache: see `DirectReads`.
  var fillsPageCache = false
  /// If it is a write of any range to a direct file, how it is made: see `BufferedWrites`. Its
  /// route is always `syscall`.
  let anyRangeWrite: AnyRangeWrite?
  /// The number of its bounce buffer; -1 if it has none.
  var bounce: Int32 = -1
  /// The number of attempts repeated because the kernel answered that nothing was done.
  var retries: UInt8 = 0
  /// The offset within the request at which the next attempt begins: the bytes before it have been
  /// transferred. A multiple of the file's alignment.
  var resumeOffset = 0
  /// The number of bytes transferred; at least `resumeOffset`.
  var transferred = 0
  /// The most bytes of one attempt; less than the kernel's limit when the disk is nearly full, and
  /// for a read that the loop copies, or that has to be aligned.
  var chunkLimit: Int

  init(
    operation: Operation, file: OpenFile, offset: Int64, length: Int,
    options: RequestOptions = [], mayWait: Bool = true, attachment: consuming Attachment
  ) {
    self.operation = operation
    verb = operation.verb
    self.file = file
    self.offset = offset
    self.length = length
    self.mayWait = mayWait
    self.attachment = attachment
    anyRangeWrite = options.contains(.anyRange) ? operation.anyRangeWrite(file, offset) : nil
    self.options = options.subtracting(.anyRange)
    chunkLimit = file.traits.maximumTransfer
    if !options.isEmpty { adaptOptions() }
  }

  /// Removes what the file does not have, and does without.
  @inline(never)
  private mutating func adaptOptions() {
    if file.traits.isDirect || file.predictor.lacksUncached { options.remove(.uncached) }
    if let route = requiredRoute {
      self.route = route
      isRouteForced = true
    }
  }

  /// The route that each attempt must take, if there is one. What waits for the disk within the
  /// call, NOWAIT or not, is a system call on an offload thread: a durable or uncached write
  /// through the page cache, and an append, whose place only the system call tells.
  var requiredRoute: Route? {
    @inline(__always) get {
      if options.isEmpty, anyRangeWrite == nil { return nil }
      if options.contains(.append) || anyRangeWrite != nil { return .syscall }
      return verb == .write && !file.traits.isDirect && !file.traits.isMemory ? .syscall : nil
    }
  }

  /// Whether it appends, and an error may be that of the sync: the kernel may have appended it all
  /// the same, and is not asked once more.
  var isDurableAppend: Bool {
    verb == .write && (options.contains(.append) || file.traits.appends)
      && (options.isDurable || file.traits.syncsWrites)
  }

  /// The number of bytes of the next attempt.
  var chunkLength: Int {
    @inline(__always) get { min(length - resumeOffset, chunkLimit) }
  }

  /// The offset in the file at which the next attempt begins.
  var chunkOffset: Int64 {
    // `RequestChecks` has refused requests for which the sum would overflow.
    @inline(__always) get { offset + Int64(resumeOffset) }
  }
}

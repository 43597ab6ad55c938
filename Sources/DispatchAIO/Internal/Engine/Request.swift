// SPDX-License-Identifier: Apache-2.0

/// What a request asks of the kernel: one case per verb.
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

/// How a request reaches the kernel.
enum Route: Equatable {
  /// `io_submit` on the loop, as it is: it cannot sleep.
  case inline
  /// `io_submit` on the loop with RWF_NOWAIT: refused where the kernel would have to sleep.
  case nowait
  /// `io_submit` on an offload thread, into the same kernel context.
  case offload
  /// A plain system call on an offload thread: for what is synchronous anyway, and for what kernel
  /// AIO does not have.
  case syscall

  /// Whether the loop itself submits it.
  var isOnLoop: Bool {
    @inline(__always) get { self == .inline || self == .nowait }
  }
}

/// The memory of a read or a write, and what keeps it alive while the request holds it.
///
/// - Safety: `@safe` although two cases hold raw pointers: nothing here follows them, and whoever
///   makes such a request promises, as the raw verbs' docs state it, that the memory stays.
@safe
enum Memory {
  /// Ours: the buffer's reference keeps the memory.
  case buffer(AIOBuffer)
  case buffers([AIOBuffer])
  /// The caller's: kept by the caller's promise.
  case raw(UnsafeMutableRawBufferPointer)
  case raws([UnsafeMutableRawBufferPointer])

  /// How many elements the request has; a single buffer goes down as a plain read or write.
  var elements: Int {
    switch self {
    case .buffer, .raw: 1
    case .buffers(let buffers): buffers.count
    case .raws(let raws): unsafe raws.count
    }
  }

  /// The memory of one element.
  @inline(__always)
  subscript(index: Int) -> UnsafeMutableRawBufferPointer {
    switch self {
    case .buffer(let buffer): unsafe buffer.unsafeBytes
    case .buffers(let buffers): unsafe buffers[index].unsafeBytes
    case .raw(let raw): unsafe raw
    case .raws(let raws): unsafe raws[index]
    }
  }

  var isVector: Bool {
    @inline(__always) get {
      switch self {
      case .buffer, .raw: false
      case .buffers, .raws: true
      }
    }
  }

  /// Whether the memory is the caller's own, of which nothing is known: it may be a mapping whose
  /// pages are on a disk.
  var isForeign: Bool {
    @inline(__always) get {
      switch self {
      case .buffer, .buffers: false
      case .raw, .raws: true
      }
    }
  }
}

/// An accepted request: what the engine needs to submit it, to keep it alive, and to say what it
/// was when it fails; and how far it has got.
///
/// Not copyable, because each copy would count three references up, and down again later: a third
/// of all that the library itself costs.
struct Request<Attachment>: ~Copyable {
  let operation: Operation
  let verb: Verb
  let file: OpenFile
  /// Where in the file, in bytes; 0 for a sync.
  let offset: Int64
  /// How many bytes over all elements; 0 for a sync.
  let length: Int
  /// Whatever the caller of the engine wants back with the completion.
  let attachment: Attachment

  /// How it went down last, or has to go down next.
  var route = Route.inline
  /// Whether `route` is how it has to go down next, rather than how it went down last.
  var isRouteForced = false
  /// Whether it counts against its file's share of the kernel's room.
  var holdsRoom = false
  /// Whether it went down without counting on the eventfd, because it is complete when
  /// `io_submit` returns.
  var isUnsignalled = false
  /// How often the kernel has said that nothing was done, and to try again.
  var retries: UInt8 = 0
  /// Where the transfer resumes: the bytes before are done. A multiple of the file's alignment.
  var resumeOffset = 0
  /// How many bytes have been transferred; at least `resumeOffset`.
  var transferred = 0
  /// How many bytes one attempt may ask for; less than the kernel's limit when the disk is nearly
  /// full.
  var chunkLimit: Int

  init(
    operation: Operation, file: OpenFile, offset: Int64, length: Int, attachment: Attachment
  ) {
    self.operation = operation
    verb = operation.verb
    self.file = file
    self.offset = offset
    self.length = length
    self.attachment = attachment
    chunkLimit = file.traits.maximumTransfer
  }

  /// How many bytes the next attempt asks for.
  var chunkLength: Int {
    @inline(__always) get { min(length - resumeOffset, chunkLimit) }
  }

  /// Where in the file the next attempt begins.
  var chunkOffset: Int64 {
    // `RequestChecks` has seen to it that the sum does not overflow.
    @inline(__always) get { offset + Int64(resumeOffset) }
  }
}

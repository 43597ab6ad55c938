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
    switch self {
    case .buffer, .raw: false
    case .buffers, .raws: true
    }
  }
}

/// A request as it was accepted: what the engine needs to submit it, to keep it alive, and to say
/// what it was when it fails; and how far it has got.
///
/// Not copyable, because each copy would count three references up, and down again later: a third
/// of all that the library itself costs.
struct AcceptedRequest<Attachment>: ~Copyable {
  let operation: Operation
  let verb: Verb
  let file: OpenFile
  /// Where in the file, in bytes; 0 for a sync.
  let offset: Int64
  /// How many bytes over all elements; 0 for a sync.
  let length: Int
  /// Whether a short transfer goes on until it is complete, the file ends, or an error comes.
  let isToFinish: Bool
  /// Whatever the caller of the engine wants back with the completion.
  let attachment: Attachment

  /// How it went down last, or has to go down; `nil` before the first time.
  var route: Route?
  /// Whether it went down without counting on the eventfd, because it is complete when
  /// `io_submit` returns.
  var isSilent = false
  /// Whether `route` is what it has to be, rather than what it was.
  var isRouted = false
  /// How often the kernel has said that nothing was done, and to try again.
  var retries: UInt8 = 0
  /// Where it goes on: the bytes before are done. A multiple of the file's alignment.
  var resume = 0
  /// How many bytes have been moved.
  var moved = 0
  /// How many bytes may be asked for at once; less than all when the disk is nearly full.
  var mostAtOnce = Int.max

  init(
    operation: Operation, file: OpenFile, offset: Int64, length: Int, isToFinish: Bool = false,
    attachment: Attachment
  ) {
    self.operation = operation
    verb = operation.verb
    self.file = file
    self.offset = offset
    self.length = length
    self.isToFinish = isToFinish
    self.attachment = attachment
  }
}

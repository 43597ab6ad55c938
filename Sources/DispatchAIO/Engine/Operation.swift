// SPDX-License-Identifier: Apache-2.0

/// What a request asks of the kernel: one case per verb.
enum Operation {
  case read(into: Memory)
  case write(from: Memory)
  case fsync
  case fdatasync
}

/// The memory of a read or a write, and what keeps it alive while the request holds it.
@safe
enum Memory {
  /// Ours: the buffer's reference keeps the memory.
  case buffer(AIOBuffer)
  case buffers([AIOBuffer])
  /// The caller's: kept by the caller's promise, as the docs of the raw verbs state it.
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
/// what it was when it fails.
struct AcceptedRequest<Attachment> {
  let operation: Operation
  let file: OpenFile
  /// Where in the file, in bytes; 0 for a sync.
  let offset: Int64
  /// How many bytes over all elements; 0 for a sync.
  let length: Int
  /// Whatever the caller of the engine wants back with the completion.
  let attachment: Attachment
  /// How often the kernel has said that nothing was done, and to try again.
  var retries: UInt8 = 0
}

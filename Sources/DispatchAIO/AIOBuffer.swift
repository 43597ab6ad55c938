// SPDX-License-Identifier: Apache-2.0

/// Aligned memory for reads and writes, or a slice of it.
///
/// A copy or a slice shares the memory. A request keeps the memory alive from its acceptance to its
/// completion, whatever the program does with its own copies; the memory is freed with the last of
/// them.
///
/// - Important: Between acceptance and completion the bytes belong to the kernel. Do not write to
///   the buffer of a write, nor touch the buffer of a read, until the completion handler runs.
///
/// - Safety: `@unchecked Sendable` because the memory's address and size are constants, its
///   lifetime is a reference count, and its bytes are raw memory on which no type relies. The rule
///   above says which thread may touch them when.
@safe
public struct AIOBuffer: @unchecked Sendable {
  private var storage: BufferStorage
  private let start: UnsafeMutableRawPointer

  /// The number of bytes of the buffer, or of this slice of it.
  public let count: Int

  /// Allocates memory and fills it with zeros. Corresponds to `posix_memalign(3)`.
  ///
  /// The call traps if the memory cannot be allocated, as Swift's own collections do.
  ///
  /// - Parameters:
  ///   - count: The number of bytes; 0 or more.
  ///   - alignment: The alignment of the address in bytes, a power of two; 4096 suits every file.
  ///     See ``AIOFile/alignment``.
  public init(count: Int, alignment: Int = 4096) {
    // fatalError and not precondition: its sentence is there in release builds, too.
    guard count >= 0 else {
      fatalError("AIOBuffer: a count of \(count) bytes; it must be 0 or more")
    }
    guard alignment > 0 && alignment & (alignment - 1) == 0 else {
      fatalError("AIOBuffer: an alignment of \(alignment); it must be a power of two")
    }
    self.init(BufferStorage(count: count, alignment: alignment), count: count)
  }

  /// All of an allocation; traps if there is none, because memory is lacking.
  init(_ storage: BufferStorage?, count: Int) {
    guard let storage else { fatalError("AIOBuffer: no memory for \(count) bytes") }
    unsafe self.init(storage: storage, start: storage.base, count: storage.count)
  }

  /// A part of an allocation. The range is within it.
  init(_ storage: BufferStorage, _ range: Range<Int>) {
    unsafe self.init(storage: storage, start: storage.base + range.lowerBound, count: range.count)
  }

  private init(storage: BufferStorage, start: UnsafeMutableRawPointer, count: Int) {
    self.storage = storage
    unsafe self.start = unsafe start
    self.count = count
  }

  /// The part of the buffer from `range.lowerBound` up to `range.upperBound`, sharing its memory.
  /// The subscript traps if the range is not within `0..<count`.
  public subscript(range: Range<Int>) -> AIOBuffer {
    guard range.lowerBound >= 0 && range.upperBound <= count else {
      fatalError("AIOBuffer: slice \(range) of a buffer of \(count) bytes")
    }
    return unsafe AIOBuffer(
      storage: storage, start: start + range.lowerBound, count: range.count)
  }

  /// The part of the buffer from its start up to `range.upperBound`, sharing its memory.
  public subscript(range: PartialRangeUpTo<Int>) -> AIOBuffer { self[0..<range.upperBound] }

  /// The part of the buffer from `range.lowerBound` to its end, sharing its memory.
  public subscript(range: PartialRangeFrom<Int>) -> AIOBuffer { self[range.lowerBound..<count] }

  /// The bytes, to read.
  public var bytes: RawSpan {
    @_lifetime(borrow self)
    get {
      // The span borrows the buffer, which holds the storage.
      let span = unsafe RawSpan(_unsafeStart: start, byteCount: count)
      return unsafe _overrideLifetime(span, borrowing: self)
    }
  }

  /// The bytes, to modify.
  public var mutableBytes: MutableRawSpan {
    @_lifetime(&self)
    mutating get {
      // The span borrows the buffer exclusively. Copies share the memory: see the rule above.
      let span = unsafe MutableRawSpan(_unsafeStart: start, byteCount: count)
      return unsafe _overrideLifetime(span, mutating: &self)
    }
  }

  /// Calls `body` with the bytes, to read; the pointer is valid during the call.
  public func withUnsafeBytes<Result, Failure: Error>(
    _ body: (UnsafeRawBufferPointer) throws(Failure) -> Result
  ) throws(Failure) -> Result {
    defer { withExtendedLifetime(storage) {} }
    return try unsafe body(UnsafeRawBufferPointer(unsafeBytes))
  }

  /// Calls `body` with the bytes, to modify; the pointer is valid during the call.
  public func withUnsafeMutableBytes<Result, Failure: Error>(
    _ body: (UnsafeMutableRawBufferPointer) throws(Failure) -> Result
  ) throws(Failure) -> Result {
    defer { withExtendedLifetime(storage) {} }
    return try unsafe body(unsafeBytes)
  }

  @inline(__always)
  var piece: Piece { unsafe Piece(bytes: unsafeBytes, owner: storage) }

  /// Whether this is the only reference to the memory: no copy, no slice and no request holds it.
  mutating func isUniquelyReferenced() -> Bool { isKnownUniquelyReferenced(&storage) }

  /// The bytes, valid while a reference to the buffer or to a slice of it exists.
  @inline(__always)
  var unsafeBytes: UnsafeMutableRawBufferPointer {
    unsafe UnsafeMutableRawBufferPointer(start: start, count: count)
  }
}

extension Memory {
  /// A buffer, which the request keeps alive.
  @inline(__always)
  static func buffer(_ buffer: AIOBuffer) -> Memory { .piece(buffer.piece) }
}

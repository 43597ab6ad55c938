// SPDX-License-Identifier: Apache-2.0

/// Aligned memory with one owner, for the asynchronous reads and writes.
///
/// What ``AIOBuffer`` has as a rule, this has as a type: it cannot be copied, a read takes it
/// `inout` and a write borrows it, so that to touch it while the request is in flight does not
/// compile.
///
/// ```swift
/// var block = AIOUniqueBuffer(count: 4096)
/// let count = try await context.read(file, at: 0, into: &block)
/// let sum = block.withUnsafeBytes { $0[..<count].reduce(0, &+) }
/// ```
public struct AIOUniqueBuffer: ~Copyable, Sendable {
  /// Nobody else has it, but for the request in flight.
  var buffer: AIOBuffer

  /// Memory of zeros. As ``AIOBuffer/init(count:alignment:)``, which says when this traps.
  ///
  /// - Parameters:
  ///   - count: How many bytes; 0 or more.
  ///   - alignment: What the address is to be a multiple of, a power of two.
  public init(count: Int, alignment: Int = 4096) {
    buffer = AIOBuffer(count: count, alignment: alignment)
  }

  /// Takes a buffer over.
  ///
  /// - Parameter buffer: To be given up by the caller, with `consume`.
  /// - Returns: `nil` when somebody else, a request in flight for one, holds the buffer or another
  ///   slice of its memory.
  public init?(_ buffer: consuming AIOBuffer) {
    guard buffer.isUniquelyReferenced() else { return nil }
    self.buffer = buffer
  }

  /// Gives the memory up to be shared, from now on by the rules of ``AIOBuffer``.
  public consuming func shared() -> AIOBuffer { buffer }

  /// How many bytes the buffer has.
  public var count: Int { buffer.count }

  /// The bytes, to look at.
  public var bytes: RawSpan {
    @_lifetime(borrow self)
    get { buffer.bytes }
  }

  /// The bytes, to change.
  public var mutableBytes: MutableRawSpan {
    @_lifetime(&self)
    mutating get { buffer.mutableBytes }
  }

  /// Calls `body` with the bytes, to look at; they are valid during the call.
  public borrowing func withUnsafeBytes<Result, Failure: Error>(
    _ body: (UnsafeRawBufferPointer) throws(Failure) -> Result
  ) throws(Failure) -> Result {
    try unsafe buffer.withUnsafeBytes(body)
  }

  /// Calls `body` with the bytes, to change; they are valid during the call.
  public mutating func withUnsafeMutableBytes<Result, Failure: Error>(
    _ body: (UnsafeMutableRawBufferPointer) throws(Failure) -> Result
  ) throws(Failure) -> Result {
    try unsafe buffer.withUnsafeMutableBytes(body)
  }

  /// A part of the buffer, or all of it.
  func part(_ range: Range<Int>?) -> AIOBuffer {
    if let range { buffer[range] } else { buffer }
  }
}

// SPDX-License-Identifier: Apache-2.0

/// Aligned memory with one owner, for reads and writes with `await`.
///
/// The type enforces what is a rule for ``AIOBuffer``: it cannot be copied, a read takes it `inout`
/// and a write borrows it, so that code which touches it while the request is in flight does not
/// compile.
///
/// ```swift
/// var block = AIOUniqueBuffer(count: 4096)
/// let count = try await context.read(file, at: 0, into: &block)
/// let sum = block.withUnsafeBytes { $0[..<count].reduce(0, &+) }
/// ```
public struct AIOUniqueBuffer: ~Copyable, Sendable {
  /// The only reference to the memory, except for that of the request in flight.
  var buffer: AIOBuffer

  /// Allocates memory and fills it with zeros: see ``AIOBuffer/init(count:alignment:)``, also for
  /// when it traps.
  ///
  /// - Parameters:
  ///   - count: The number of bytes; 0 or more.
  ///   - alignment: The alignment of the address in bytes, a power of two; 4096 suits every file.
  public init(count: Int, alignment: Int = 4096) {
    buffer = AIOBuffer(count: count, alignment: alignment)
  }

  /// Takes ownership of a buffer.
  ///
  /// - Parameter buffer: The buffer, which the caller gives up with `consume`.
  /// - Returns: `nil` if another reference to the memory exists: a copy, a slice, a request in
  ///   flight, or one that keeps it for later, as ``AIOChunks`` do.
  public init?(_ buffer: consuming AIOBuffer) {
    guard buffer.isUniquelyReferenced() else { return nil }
    self.buffer = buffer
  }

  /// Turns the memory into an ``AIOBuffer``, whose rules apply from now on.
  public consuming func shared() -> AIOBuffer { buffer }

  /// The number of bytes of the buffer.
  public var count: Int { buffer.count }

  /// The bytes, to read.
  public var bytes: RawSpan {
    @_lifetime(borrow self)
    get { buffer.bytes }
  }

  /// The bytes, to modify.
  public var mutableBytes: MutableRawSpan {
    @_lifetime(&self)
    mutating get { buffer.mutableBytes }
  }

  /// Calls `body` with the bytes, to read; the pointer is valid during the call.
  public borrowing func withUnsafeBytes<Result, Failure: Error>(
    _ body: (UnsafeRawBufferPointer) throws(Failure) -> Result
  ) throws(Failure) -> Result {
    try unsafe buffer.withUnsafeBytes(body)
  }

  /// Calls `body` with the bytes, to modify; the pointer is valid during the call.
  public mutating func withUnsafeMutableBytes<Result, Failure: Error>(
    _ body: (UnsafeMutableRawBufferPointer) throws(Failure) -> Result
  ) throws(Failure) -> Result {
    try unsafe buffer.withUnsafeMutableBytes(body)
  }

  /// A part of the buffer; all of it if `range` is `nil`.
  func part(_ range: Range<Int>?) -> AIOBuffer {
    if let range { buffer[range] } else { buffer }
  }
}

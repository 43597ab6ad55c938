// SPDX-License-Identifier: Apache-2.0
//
// DispatchData to and from the memory of requests, without a copy.

public import Dispatch
internal import PlatformLibc

extension DispatchData {
  /// Makes data of a buffer, or a slice of one, without copying. The data keeps the memory, which
  /// is released on another thread once the last reference to the data is gone.
  ///
  /// - Parameter buffer: The buffer, whose bytes must not be changed while the data exists.
  public init(_ buffer: AIOBuffer) {
    guard buffer.count > 0 else {
      self = .empty
      return
    }
    // The deallocator holds the memory.
    unsafe self.init(
      bytesNoCopy: UnsafeRawBufferPointer(buffer.unsafeBytes),
      deallocator: .custom(Self.releasing, { withExtendedLifetime(buffer) {} }))
  }

  /// The queue on which buffers are released.
  private static let releasing = DispatchQueue(label: "DispatchAIO.releasing")

  /// The largest number of bytes that a copy takes less time for than a block on another queue,
  /// which is what Dispatch calls a deallocator by. (`.free`, which it calls in place, crashes in
  /// the overlay of Swift 6.3: it retains a block that is a constant.)
  private static let largestCopy = 32 << 10

  /// Data of a buffer that nobody else uses, without copying unless that costs less.
  static func handingOut(_ buffer: AIOBuffer) -> DispatchData {
    guard buffer.count <= largestCopy else { return DispatchData(buffer) }
    return unsafe buffer.withUnsafeBytes { unsafe DispatchData(bytes: $0) }
  }
}

extension AIOContext {
  /// Writes data to any range of a file, from where its bytes are. Corresponds to `pwritev(2)`.
  ///
  /// Everything else is as for ``write(_:contentsOf:at:queue:completion:)-(_,AIOBuffer,_,_,_)``: a
  /// direct file gets the data past the page cache if the regions are whole aligned blocks, and
  /// else through it. Data of more than 1024 regions is copied into one.
  @discardableResult
  public func write(
    _ file: AIOFile, contentsOf data: DispatchData, at offset: Int64, queue: DispatchQueue? = nil,
    completion: @escaping AIOCompletion
  ) throws(AIOError) -> AIORequest {
    let (memory, owner) = Memory.regions(of: data)
    return try accept(.write(from: memory), file, offset, .anyRange, queue) { result in
      withExtendedLifetime(owner) {}
      completion(result)
    }
  }

  /// Writes data, waiting for a slot if there is none. The completion runs on the context's queue,
  /// and not within the call.
  func writeData(
    _ file: AIOFile, _ data: DispatchData, at offset: Int64, completion: @escaping AIOCompletion
  ) {
    let (memory, owner) = Memory.regions(of: data)
    acceptOrWait(.write(from: memory), file, offset, .anyRange) { result in
      withExtendedLifetime(owner) {}
      completion(result)
    }
  }

  /// Reads any range, waiting for a slot if there is none. The completion runs on the context's
  /// queue, and not within the call.
  func readData(
    _ file: AIOFile, from offset: Int64, count: Int,
    completion: @escaping @Sendable (Result<DispatchData, AIOError>) -> Void
  ) {
    let read: RangeRead
    do throws(AIOError) {
      read = try RangeRead(file.file, offset, count, pool: memoryPool)
    } catch {
      return async { completion(.failure(error)) }
    }
    acceptOrWait(read.operation, file, read.start) { result in
      completion(result.map { .handingOut(read.slice($0)) }.mapError { read.rebased($0) })
    }
  }

  private func acceptOrWait(
    _ operation: Operation, _ file: AIOFile, _ offset: Int64, _ options: RequestOptions = [],
    completion: @escaping AIOCompletion
  ) {
    do throws(AIOError) {
      _ = try accept(operation, file, offset, options, nil, completion)
    } catch {
      guard error.code == .full else { return async { completion(.failure(error)) } }
      let completeLater: AIOCompletion = { [self] result in async { completion(result) } }
      acceptLater(
        operation, file, offset, options, Waiter(), .callback(completeLater, queue: nil))
    }
  }
}

/// Data that a request uses.
///
/// - Safety: `@unchecked Sendable` because it is immutable, and only kept.
private struct DataOwner: @unchecked Sendable { let data: DispatchData }

extension Memory {
  /// The regions of data, and the data that keeps them.
  fileprivate static func regions(of data: DispatchData) -> (Memory, DataOwner) {
    var pieces: [UnsafeRawBufferPointer] = unsafe []
    // The bytes of a region stay where they are while the data exists.
    unsafe data.enumerateBytes { bytes, _, _ in
      unsafe pieces.append(UnsafeRawBufferPointer(bytes))
    }
    if unsafe pieces.count <= SubmissionBatch.maximumElements {
      return unsafe (.constants(pieces), DataOwner(data: data))
    }
    let copy = AIOBuffer(count: data.count)
    // The buffer has room for all of it.
    unsafe copy.unsafeBytes.withMemoryRebound(to: UInt8.self) {
      _ = unsafe data.copyBytes(to: $0)
    }
    return (.buffer(copy), DataOwner(data: .empty))
  }
}

// SPDX-License-Identifier: Apache-2.0

import DispatchAIO

/// A batch being filled, or in flight: its buffer, laid out as it will be on disk, and whose bytes
/// are where in it.
///
/// - Safety: `@unchecked Sendable` because it is confined to the journal's queue.
final class Batch: @unchecked Sendable {
  let buffer: AIOBuffer
  /// The bytes of the buffer in use: the header and whole records.
  private(set) var used = JournalFormat.headerLength
  private(set) var records = 0
  /// The clients to tell, with the ranges of their bytes, in order.
  private var pieces: [(client: any JournalClient, start: Int, count: Int)] = []
  private(set) var sequence: UInt64 = 0
  /// The time when it was sealed.
  private(set) var sealed = ContinuousClock.now
  var isWritten = false
  /// The place behind it; set when it is submitted.
  var end: (segment: UInt64, offset: Int) = (0, 0)
  /// Whether its clients have been told that it failed.
  private(set) var isAbandoned = false

  private let identity: JournalIdentity

  init(buffer: AIOBuffer, _ identity: JournalIdentity) {
    (self.buffer, self.identity) = (buffer, identity)
  }

  /// The most bytes of payload that one more record can have; negative if not even its header fits.
  var room: Int { buffer.count - used - JournalFormat.recordHeaderLength }

  /// Appends a record, whose payload `fill` puts into the memory it is given.
  ///
  /// - Parameter header: the record's header, with the most bytes of payload as its length.
  /// - Returns: the number that `fill` returned. If it is negative, nothing has been appended.
  func append(
    _ header: RecordHeader, for client: any JournalClient,
    fill: (UnsafeMutableRawBufferPointer) -> Int
  ) -> Int {
    let start = used + JournalFormat.recordHeaderLength
    precondition(header.length <= room)
    let count = buffer.withUnsafeMutableBytes { bytes -> Int in
      let count = fill(.init(rebasing: bytes[start..<start + header.length]))
      guard count >= 0 else { return count }
      var record = header
      record.length = count
      record.write(to: .init(rebasing: bytes[used...]), at: used, identity)
      // The buffer has been used before, so that the padding has to be zeroed.
      for index in start + count..<used + record.stride { bytes[index] = 0 }
      used += record.stride
      return count
    }
    guard count >= 0 else { return count }
    records += 1
    // An opening has nothing to echo, but its client, too, is told if it is lost.
    if header.kind != .closed { pieces.append((client, start, header.kind == .data ? count : 0)) }
    return count
  }

  /// Completes the batch with its header, and with zeros up to `length`.
  func seal(_ header: BatchHeader, length: Int) {
    precondition(used <= length && length <= buffer.count)
    sequence = header.sequence
    buffer.withUnsafeMutableBytes { bytes in
      header.write(to: bytes, identity)
      for index in used..<length { bytes[index] = 0 }
    }
    sealed = .now
  }

  /// Tells the clients, in order, that their bytes are durable.
  func reportDurable() {
    buffer.withUnsafeBytes { bytes in
      for (client, start, count) in pieces {
        client.becameDurable(.init(rebasing: bytes[start..<start + count]))
      }
    }
  }

  /// Tells each client, once, that its bytes will not be durable.
  func abandon(_ error: any Error) {
    isAbandoned = true
    var told = Set<ObjectIdentifier>()
    for (client, _, _) in pieces where told.insert(ObjectIdentifier(client)).inserted {
      client.journalFailed(error)
    }
  }
}

// SPDX-License-Identifier: Apache-2.0

import DispatchAIO
import Foundation
import SystemPackage
import XCTest

@testable import EchoToDisk

/// A journal of one segment whose batches a test lays out itself.
struct HandMadeJournal {
  let data: FilePath
  let identity: JournalIdentity
  let unit: Int
  private(set) var offset: Int
  private(set) var sequence: UInt64 = 0

  struct Record {
    var kind: RecordHeader.Kind
    var connection: UInt64
    var position: UInt64 = 0
    var payload: [UInt8] = []

    static func opened(_ connection: UInt64, _ peer: String) -> Record {
      Record(
        kind: .opened, connection: connection, payload: [UInt8](repeating: 0, count: 8) + peer.utf8)
    }
  }

  init(in data: FilePath) throws {
    self.data = data
    let directory = try JournalDirectory(data, syncs: false)
    let segment = try Segment(
      making: 1, in: directory.directory, data, directory.identity, size: 1 << 20, syncs: false)
    try directory.marks.updateEnd { $0.made = 1 }
    (identity, unit, offset) = (directory.identity, segment.unit, segment.unit)
  }

  var segment: FilePath { data.appending(JournalFormat.fileName(of: 1)) }

  /// Appends a batch, which calls the one before it durable.
  ///
  /// - Returns: its offset.
  @discardableResult
  mutating func append(_ records: [Record], nextConnection: UInt64 = 100) throws -> Int {
    let length = records.reduce(JournalFormat.headerLength) {
      $0 + JournalFormat.recordHeaderLength + JournalFormat.padded($1.payload.count)
    }
    let whole = (length + unit - 1) / unit * unit
    let batch = Batch(buffer: AIOBuffer(count: whole, alignment: 4096), identity)
    for record in records {
      _ = batch.append(
        RecordHeader(
          kind: record.kind, connection: record.connection, position: record.position,
          length: record.payload.count), for: Nobody()
      ) { memory in
        memory.copyBytes(from: record.payload)
        return record.payload.count
      }
    }
    sequence += 1
    batch.seal(
      BatchHeader(
        segment: 1, offset: offset, sequence: sequence, first: 1, before: 0, durable: sequence - 1,
        nextConnection: nextConnection, length: length - JournalFormat.headerLength,
        records: records.count, unit: unit), length: whole)
    try write(batch.buffer.withUnsafeBytes { [UInt8]($0) }, at: offset)
    defer { offset += whole }
    return offset
  }

  /// Marks the end, as a daemon does that stops.
  func end() throws {
    let directory = try OpenDirectory(data)
    let marks = try JournalMarkWriter(in: directory.file, identity, isNew: false)
    try marks.updateEnd { mark in
      (mark.isClean, mark.segment, mark.offset) = (true, 1, offset)
      (mark.sequence, mark.nextConnection) = (sequence, 100)
    }
  }

  func write(_ bytes: [UInt8], at offset: Int) throws {
    let file = try FileDescriptor.open(segment, .writeOnly)
    try file.closeAfter { _ = try file.writeAll(toAbsoluteOffset: Int64(offset), bytes) }
  }

  private final class Nobody: JournalClient {
    func becameDurable(_ bytes: UnsafeRawBufferPointer) {}
    func journalFailed(_ error: any Error) {}
  }
}

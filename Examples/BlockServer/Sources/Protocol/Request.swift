// SPDX-License-Identifier: Apache-2.0

/// An export as it is described to clients.
struct ExportDescription {
  var name: String
  /// The size in bytes.
  var size: UInt64
  var isReadOnly: Bool
  /// The size that requests should be multiples of, which then need no read-modify-write; a power
  /// of two.
  var preferredBlock: UInt32 = 4096

  /// The most bytes of a read or a write: 32 MiB, which clients may expect of every server.
  static let largestPayload: UInt32 = 32 << 20

  func flags(structured: Bool) -> NBD.TransmissionFlags {
    // All connections write to one file, past every cache, so that an fdatasync covers what any of
    // them wrote: canMultiConn is true.
    var flags: NBD.TransmissionFlags = [
      .hasFlags, .sendFlush, .sendFUA, .canMultiConn, .sendCache,
    ]
    if isReadOnly {
      flags.insert(.readOnly)
    } else {
      flags.formUnion([.sendTrim, .sendWriteZeroes, .sendFastZero])
    }
    if structured { flags.insert(.sendDF) }
    return flags
  }
}

/// A request of the transmission phase.
struct Request: Equatable {
  var command: NBD.Command
  var flags: NBD.CommandFlags
  /// The client's number for the request, which the reply repeats.
  var cookie: UInt64
  var offset: UInt64
  var length: UInt32

  /// The error with which an export refuses the request; `nil` if it can do it.
  ///
  /// - Parameters:
  ///   - structured: whether structured replies were negotiated.
  ///   - hasContext: whether `base:allocation` was selected.
  @inline(__always)
  func refusal(by export: ExportDescription, structured: Bool, hasContext: Bool)
    -> (error: NBD.ErrorCode, message: StaticString)?
  {
    let allowed: NBD.CommandFlags
    var writes = false
    switch command {
    case .read: allowed = structured ? [.fua, .df] : .fua
    case .write:
      allowed = .fua
      writes = true
    case .trim:
      allowed = .fua
      writes = true
    case .writeZeroes:
      allowed = [.fua, .noHole, .fastZero]
      writes = true
    case .blockStatus: allowed = [.fua, .requestOne]
    case .flush, .cache, .disconnect: allowed = .fua
    }
    if !flags.isSubset(of: allowed) { return (.invalid, "a flag that the command does not have") }
    if writes && export.isReadOnly { return (.notPermitted, "the export is read-only") }
    switch command {
    case .flush:
      return offset == 0 && length == 0
        ? nil : (.invalid, "a flush has offset 0 and length 0")
    case .disconnect: return nil
    case .blockStatus:
      if !hasContext { return (.invalid, "no metadata context was selected") }
      if length == 0 { return (.invalid, "a block status of 0 bytes") }
    default: break
    }
    if offset > export.size || UInt64(length) > export.size - offset {
      return (
        command == .write || command == .writeZeroes ? .noSpace : .invalid,
        "beyond the end of the export"
      )
    }
    if length > ExportDescription.largestPayload && (command == .read || command == .write) {
      // Overflow tells the client to try without DF, which exists with structured replies only.
      return (command == .read && structured ? .overflow : .invalid, "more than 32 MiB at once")
    }
    return nil
  }
}

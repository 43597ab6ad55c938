// SPDX-License-Identifier: Apache-2.0
//
// The numbers of the NBD protocol, named as in its document (NetworkBlockDevice/nbd, doc/proto.md),
// and their layout in memory: big-endian, at any address.

enum NBD {
  static let initialMagic: UInt64 = 0x4e42_444d_4147_4943  // "NBDMAGIC"
  static let optionMagic: UInt64 = 0x4948_4156_454f_5054  // "IHAVEOPT"
  static let optionReplyMagic: UInt64 = 0x0003_e889_0455_65a9
  static let requestMagic: UInt32 = 0x2560_9513
  static let simpleReplyMagic: UInt32 = 0x6744_6698
  static let structuredReplyMagic: UInt32 = 0x668e_33ef

  static let optionHeaderSize = 16
  static let requestSize = 28
  static let simpleReplySize = 16
  static let structuredReplySize = 20

  /// The longest string of the protocol: an export's name, a query, an error's message.
  static let longestString = 4096

  /// The flags that client and server exchange before the first option.
  struct HandshakeFlags: OptionSet {
    let rawValue: UInt32
    static let fixedNewstyle = HandshakeFlags(rawValue: 1 << 0)
    static let noZeroes = HandshakeFlags(rawValue: 1 << 1)
  }

  /// The abilities of an export.
  struct TransmissionFlags: OptionSet {
    let rawValue: UInt16
    static let hasFlags = TransmissionFlags(rawValue: 1 << 0)
    static let readOnly = TransmissionFlags(rawValue: 1 << 1)
    static let sendFlush = TransmissionFlags(rawValue: 1 << 2)
    static let sendFUA = TransmissionFlags(rawValue: 1 << 3)
    static let sendTrim = TransmissionFlags(rawValue: 1 << 5)
    static let sendWriteZeroes = TransmissionFlags(rawValue: 1 << 6)
    static let sendDF = TransmissionFlags(rawValue: 1 << 7)
    static let canMultiConn = TransmissionFlags(rawValue: 1 << 8)
    static let sendCache = TransmissionFlags(rawValue: 1 << 10)
    static let sendFastZero = TransmissionFlags(rawValue: 1 << 11)
  }

  enum Option: UInt32 {
    case exportName = 1
    case abort = 2
    case list = 3
    case startTLS = 5
    case info = 6
    case go = 7
    case structuredReply = 8
    case listMetaContext = 9
    case setMetaContext = 10
  }

  enum OptionReply: UInt32 {
    case ack = 1
    case server = 2
    case info = 3
    case metaContext = 4
    case unsupported = 0x8000_0001
    case policy = 0x8000_0002
    case invalid = 0x8000_0003
    case unknown = 0x8000_0006
    case tooBig = 0x8000_0009
  }

  enum Info: UInt16 {
    case export = 0
    case name = 1
    case description = 2
    case blockSize = 3
  }

  enum Command: UInt16 {
    case read = 0
    case write = 1
    case disconnect = 2
    case flush = 3
    case trim = 4
    case cache = 5
    case writeZeroes = 6
    case blockStatus = 7
  }

  struct CommandFlags: OptionSet {
    let rawValue: UInt16
    /// Force unit access: the write is durable when it is answered.
    static let fua = CommandFlags(rawValue: 1 << 0)
    static let noHole = CommandFlags(rawValue: 1 << 1)
    /// Do not fragment: the reply is one chunk.
    static let df = CommandFlags(rawValue: 1 << 2)
    /// One extent only.
    static let requestOne = CommandFlags(rawValue: 1 << 3)
    /// Fail unless it is faster than writing zeros.
    static let fastZero = CommandFlags(rawValue: 1 << 4)
  }

  static let replyFlagDone: UInt16 = 1

  enum Chunk: UInt16 {
    case none = 0
    case offsetData = 1
    case blockStatus = 5
    case error = 0x8001
  }

  enum ErrorCode: UInt32, Error {
    case notPermitted = 1
    case inputOutput = 5
    case noMemory = 12
    case invalid = 22
    case noSpace = 28
    case overflow = 75
    case notSupported = 95
    case shutdown = 108
  }

  /// The only metadata context of this server, and the number it has here.
  static let allocationContext = "base:allocation"
  static let allocationContextID: UInt32 = 1
  /// The states of an extent in `base:allocation`.
  static let stateHole: UInt32 = 1
  static let stateZero: UInt32 = 2
}

extension UnsafeRawBufferPointer {
  /// A big-endian number at any address. Traps beyond the buffer's end.
  @inline(__always)
  func number<Number: FixedWidthInteger>(_ type: Number.Type = Number.self, at offset: Int)
    -> Number
  {
    precondition(offset >= 0 && offset + MemoryLayout<Number>.size <= count)
    return Number(bigEndian: loadUnaligned(fromByteOffset: offset, as: Number.self))
  }
}

extension UnsafeMutableRawPointer {
  /// Stores a number as big-endian, at any address.
  @inline(__always)
  func put<Number: FixedWidthInteger>(_ number: Number, at offset: Int) {
    storeBytes(of: number.bigEndian, toByteOffset: offset, as: Number.self)
  }
}

extension [UInt8] {
  mutating func append<Number: FixedWidthInteger>(number: Number) {
    Swift.withUnsafeBytes(of: number.bigEndian) { append(contentsOf: $0) }
  }
}

// SPDX-License-Identifier: Apache-2.0

/// The encoders of the heads of replies.
///
/// - Safety: the caller has `Replies.room` bytes at `head`; each function returns the number of
///   bytes that it has written.
enum Replies {
  /// The bytes that any head fits in.
  static let room = 256
  /// The most bytes of an error's message that fit in a head.
  private static let longestMessage = room - NBD.structuredReplySize - 6

  /// A simple reply.
  @inline(__always)
  static func simple(
    _ head: UnsafeMutableRawPointer, cookie: UInt64, error: NBD.ErrorCode? = nil
  ) -> Int {
    head.put(NBD.simpleReplyMagic, at: 0)
    head.put(error?.rawValue ?? 0, at: 4)
    head.put(cookie, at: 8)
    return NBD.simpleReplySize
  }

  /// The head of a structured reply's chunk.
  ///
  /// - Parameter length: the number of bytes that follow the head.
  @inline(__always)
  static func chunk(
    _ head: UnsafeMutableRawPointer, _ type: NBD.Chunk, cookie: UInt64, isLast: Bool, length: Int
  ) -> Int {
    head.put(NBD.structuredReplyMagic, at: 0)
    head.put(isLast ? NBD.replyFlagDone : 0, at: 4)
    head.put(type.rawValue, at: 6)
    head.put(cookie, at: 8)
    head.put(UInt32(length), at: 16)
    return NBD.structuredReplySize
  }

  /// The head of a chunk with `count` bytes from `offset`.
  @inline(__always)
  static func data(
    _ head: UnsafeMutableRawPointer, cookie: UInt64, isLast: Bool, offset: UInt64, count: Int
  ) -> Int {
    let size = chunk(head, .offsetData, cookie: cookie, isLast: isLast, length: 8 + count)
    head.put(offset, at: size)
    return size + 8
  }

  /// The last chunk, with an error.
  static func error(
    _ head: UnsafeMutableRawPointer, cookie: UInt64, _ error: NBD.ErrorCode, message: String
  ) -> Int {
    let message = message.utf8.prefix(longestMessage)
    var size = chunk(head, .error, cookie: cookie, isLast: true, length: 6 + message.count)
    head.put(error.rawValue, at: size)
    head.put(UInt16(message.count), at: size + 4)
    size += 6
    for byte in message {
      head.storeBytes(of: byte, toByteOffset: size, as: UInt8.self)
      size += 1
    }
    return size
  }
}

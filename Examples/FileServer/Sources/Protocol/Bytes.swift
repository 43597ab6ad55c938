// SPDX-License-Identifier: Apache-2.0
//
// Bytes as they are on the wire: no String is made of a request.

import Glibc
import HTTPRules

typealias Bytes = UnsafeRawBufferPointer

/// A part of a request's bytes, by its place in them, so that it stays valid when they are moved.
struct Slice: Equatable {
  var start: Int
  var count: Int

  func of(_ bytes: Bytes) -> Bytes { Bytes(rebasing: bytes[start..<start + count]) }
}

@inline(__always)
func lowercased(_ byte: UInt8) -> UInt8 {
  byte >= UInt8(ascii: "A") && byte <= UInt8(ascii: "Z") ? byte | 0x20 : byte
}

extension UnsafeRawBufferPointer {
  /// The same, as numbers.
  var octets: UnsafeBufferPointer<UInt8> { assumingMemoryBound(to: UInt8.self) }

  /// Whether the bytes are these.
  func equals(_ text: StaticString) -> Bool {
    // A buffer that is not empty has an address.
    count == text.utf8CodeUnitCount
      && (count == 0 || memcmp(baseAddress!, text.utf8Start, count) == 0)
  }

  /// Whether the bytes are these, in upper or lower case. `text` is in lower case.
  func equalsIgnoringCase(_ text: StaticString) -> Bool {
    guard count == text.utf8CodeUnitCount else { return false }
    for index in 0..<count where lowercased(self[index]) != text.utf8Start[index] { return false }
    return true
  }

  /// The first place of a byte, at or after `start`.
  func firstIndex(of byte: UInt8, from start: Int = 0) -> Int? {
    guard start < count, let base = baseAddress,
      let found = memchr(base + start, Int32(byte), count - start)
    else { return nil }
    return UnsafeRawPointer(found) - base
  }

  /// Without the spaces and tabs around it.
  var trimmed: Bytes { Bytes(rebasing: self[octets.span.trimmed(0..<count)]) }

  /// Calls `body` for each element of a list with commas, trimmed; those that are empty are left
  /// out. No comma in quotes is a separator.
  func forEachElement(_ body: (Bytes) -> Void) {
    octets.span.forEachElement(in: 0..<count) { body(Bytes(rebasing: self[$0])) }
  }

  /// The number that the bytes are in decimal digits, if they are nothing else, and it fits.
  var decimal: Int64? {
    guard count > 0, count <= 18 else { return nil }
    var number: Int64 = 0
    for byte in self {
      guard byte >= UInt8(ascii: "0"), byte <= UInt8(ascii: "9") else { return nil }
      number = number * 10 + Int64(byte - UInt8(ascii: "0"))
    }
    return number
  }
}

/// Bytes to send: memory that is used over and over.
///
/// - Safety: `@unchecked Sendable` because it is confined to its loop's queue.
final class OutputBuffer: @unchecked Sendable {
  private var memory: UnsafeMutableRawBufferPointer
  private(set) var count = 0

  init(capacity: Int) { memory = .allocate(byteCount: capacity, alignment: 16) }

  deinit { memory.deallocate() }

  var isEmpty: Bool { count == 0 }
  var bytes: Bytes { Bytes(rebasing: memory[..<count]) }

  func removeAll() { count = 0 }

  /// Removes what was appended since there were `count` bytes.
  func removeAll(after count: Int) { self.count = count }

  private func reserve(_ more: Int) {
    guard count + more > memory.count else { return }
    let larger = UnsafeMutableRawBufferPointer.allocate(
      byteCount: max(2 * memory.count, count + more), alignment: 16)
    larger.copyMemory(from: bytes)
    memory.deallocate()
    memory = larger
  }

  /// Appends up to `room` bytes that `fill` writes, which returns how many it wrote.
  func append(room: Int, _ fill: (UnsafeMutableRawBufferPointer) -> Int) {
    reserve(room)
    count += fill(UnsafeMutableRawBufferPointer(rebasing: memory[count..<count + room]))
  }

  func append(_ text: StaticString) {
    append(Bytes(start: text.utf8Start, count: text.utf8CodeUnitCount))
  }

  func append(_ bytes: Bytes) {
    // An empty buffer may have no address.
    guard let base = bytes.baseAddress, !bytes.isEmpty else { return }
    reserve(bytes.count)
    memcpy(memory.baseAddress! + count, base, bytes.count)  // A buffer of capacity has an address.
    count += bytes.count
  }

  func append(_ bytes: [UInt8]) { bytes.withUnsafeBytes { append($0) } }

  func append(_ text: String) {
    var text = text
    text.withUTF8 { append(Bytes($0)) }
  }

  func append(byte: UInt8) {
    reserve(1)
    memory[count] = byte
    count += 1
  }

  func append(_ number: Int64) { append(UInt64(number), radix: 10) }

  func append(_ number: UInt64, radix: UInt64) {
    reserve(20)
    var (rest, digits) = (number, 1)
    while rest >= radix {
      rest /= radix
      digits += 1
    }
    rest = number
    for index in stride(from: count + digits - 1, through: count, by: -1) {
      let digit = UInt8(rest % radix)
      memory[index] = digit < 10 ? UInt8(ascii: "0") + digit : UInt8(ascii: "a") - 10 + digit
      rest /= radix
    }
    count += digits
  }
}

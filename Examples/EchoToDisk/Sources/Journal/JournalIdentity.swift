// SPDX-License-Identifier: Apache-2.0

import CXXHash

/// What makes one journal's bytes different from all others: its number, which is no secret, and
/// the secret that its checksums take. Every segment has both, and the marks have.
final class JournalIdentity: Sendable, Hashable {
  let journal: UInt64
  let secret: [UInt8]

  /// A new journal's: random.
  init() {
    var generator = SystemRandomNumberGenerator()
    journal = UInt64.random(in: 1 ... .max, using: &generator)
    secret = (0..<JournalFormat.secretLength).map { _ in
      UInt8.random(in: 0...255, using: &generator)
    }
  }

  init(journal: UInt64, secret: UnsafeRawBufferPointer) {
    precondition(secret.count == JournalFormat.secretLength)
    self.journal = journal
    self.secret = [UInt8](secret)
  }

  static func == (a: JournalIdentity, b: JournalIdentity) -> Bool {
    a === b || a.journal == b.journal && a.secret == b.secret
  }

  func hash(into hasher: inout Hasher) {
    hasher.combine(journal)
    hasher.combine(secret)
  }

  /// A checksum of the first `count` bytes that only who knows the secret can make.
  func checksum(of bytes: UnsafeRawBufferPointer, count: Int) -> UInt64 {
    secret.withUnsafeBytes {
      XXH3_64bits_withSecret(bytes.baseAddress, count, $0.baseAddress, $0.count)
    }
  }

  /// A checksum that finds damage. Not keyed: for what has the key in it.
  static func plainChecksum(of bytes: UnsafeRawBufferPointer, count: Int) -> UInt64 {
    XXH3_64bits(bytes.baseAddress, count)
  }
}

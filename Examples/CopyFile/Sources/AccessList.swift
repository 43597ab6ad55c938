// SPDX-License-Identifier: Apache-2.0

import Glibc

/// A POSIX access control list, as `system.posix_acl_access` holds it (see acl(5)).
struct AccessList {
  /// The bits of a mode, without the set-ID bits, that give nobody a right that the list does not.
  ///
  /// The group's bits in the mode of a file that has a list are the list's mask, and no right of
  /// the group. And whoever is named in the list is anybody in a file without one: a right that a
  /// named user lacks, the copy's group and others must not have; one that a named group lacks,
  /// others must not.
  let plainBits: mode_t

  private static let (userObject, user, groupObject, group): (UInt16, UInt16, UInt16, UInt16) =
    (0x01, 0x02, 0x04, 0x08)
  private static let (mask, other): (UInt16, UInt16) = (0x10, 0x20)
  private static let version: UInt32 = 2

  /// - Returns: `nil` if the bytes are no list of the known version.
  init?(_ bytes: [UInt8]) {
    func number(_ offset: Int, _ count: Int) -> UInt32 {
      bytes[offset..<offset + count].reversed().reduce(0) { $0 << 8 | UInt32($1) }
    }
    guard bytes.count >= 4, (bytes.count - 4) % 8 == 0, number(0, 4) == Self.version
    else { return nil }
    let entries = stride(from: 4, to: bytes.count, by: 8).map {
      (tag: UInt16(number($0, 2)), rights: mode_t(number($0 + 2, 2)) & 7)
    }
    func rights(_ tag: UInt16) -> mode_t? { entries.first { $0.tag == tag }?.rights }
    let most = rights(Self.mask) ?? 7
    /// The rights that all entries of a kind give.
    func common(_ tag: UInt16) -> mode_t {
      entries.reduce(7) { $1.tag == tag ? $0 & $1.rights & most : $0 }
    }
    guard let owner = rights(Self.userObject), let ownGroup = rights(Self.groupObject),
      let others = rights(Self.other)
    else { return nil }
    let users = common(Self.user)
    plainBits =
      owner << 6 | (ownGroup & most & users) << 3 | (others & users & common(Self.group))
  }
}

// SPDX-License-Identifier: Apache-2.0

/// The options of a read or a write, as the kernel takes them in `aio_rw_flags`, and `preadv2(2)`
/// and `pwritev2(2)` in their flags. The numbers are those of `linux/fs.h`, the same on every
/// architecture.
struct RequestOptions: OptionSet {
  let rawValue: UInt8

  /// RWF_DSYNC: the bytes are durable when the request completes.
  static var dataSync: RequestOptions { RequestOptions(rawValue: 0x02) }
  /// RWF_SYNC: the bytes and all metadata are.
  static var sync: RequestOptions { RequestOptions(rawValue: 0x04) }
  /// RWF_APPEND: the bytes are written at the end of the file, wherever that is then.
  static var append: RequestOptions { RequestOptions(rawValue: 0x10) }
  /// RWF_ATOMIC: all of the bytes get to the disk, or none.
  static var atomic: RequestOptions { RequestOptions(rawValue: 0x40) }
  /// RWF_DONTCACHE: the page cache does not keep the bytes.
  static var uncached: RequestOptions { RequestOptions(rawValue: 0x80) }

  /// A write whose offset, length and memory need no alignment, whatever the file. Not one of the
  /// kernel's (which has RWF_HIPRI there): a request takes it away when it is made.
  static var anyRange: RequestOptions { RequestOptions(rawValue: 0x01) }

  /// Those that the caller of a write may name.
  static var ofWrites: RequestOptions { [.dataSync, .sync, .atomic, .uncached] }

  /// Whether they make a write complete only once it is durable.
  var isDurable: Bool { !isDisjoint(with: [.dataSync, .sync]) }

  /// Whether a kernel or file system may refuse the option itself with EOPNOTSUPP, so that this
  /// answer says nothing about RWF_NOWAIT.
  var mayBeUnsupported: Bool { !isDisjoint(with: [.atomic, .uncached]) }
}

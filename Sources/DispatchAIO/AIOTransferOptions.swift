// SPDX-License-Identifier: Apache-2.0

/// What a read is to do beside reading.
public struct AIOReadOptions: OptionSet, Hashable, Sendable {
  /// The flags of `preadv2(2)`.
  public let rawValue: UInt8

  /// Makes options from flags of `preadv2(2)`; a flag that has no name here is ignored.
  public init(rawValue: UInt8) { self.rawValue = rawValue & RequestOptions.uncached.rawValue }

  var request: RequestOptions { RequestOptions(rawValue: rawValue) }

  /// What the read brings into the page cache is dropped from it again (`RWF_DONTCACHE`, Linux
  /// 6.14). Where the kernel or the file system does not have that, or the file is direct, it is a
  /// read like any other: it is advice about memory, and changes no byte.
  public static var uncached: AIOReadOptions {
    AIOReadOptions(rawValue: RequestOptions.uncached.rawValue)
  }
}

/// What a write is to do beside writing.
///
/// Every attempt that a write takes (see ``AIOContext``) is made with its options, also where
/// several writes become one system call.
public struct AIOWriteOptions: OptionSet, Hashable, Sendable {
  /// The flags of `pwritev2(2)`.
  public let rawValue: UInt8

  /// Makes options from flags of `pwritev2(2)`; a flag that has no name here is ignored.
  public init(rawValue: UInt8) { self.rawValue = rawValue & RequestOptions.all.rawValue }

  var request: RequestOptions { RequestOptions(rawValue: rawValue) }

  /// The write completes once its bytes, and of the metadata what is needed to read them back, are
  /// durable, as by an `fdatasync` of those bytes (`RWF_DSYNC`).
  ///
  /// After a failure the bytes may be in the file, or not, and may be lost: they have to be written
  /// again. On a direct file the disk's flush happens off the loop, within the kernel; a buffered
  /// file's write is made by an offload thread. Writes that wait there and continue each other
  /// share one flush.
  public static var dataSync: AIOWriteOptions {
    AIOWriteOptions(rawValue: RequestOptions.dataSync.rawValue)
  }

  /// As ``dataSync``, and all metadata, the times for example, as by an `fsync` (`RWF_SYNC`).
  public static var sync: AIOWriteOptions {
    AIOWriteOptions(rawValue: RequestOptions.sync.rawValue)
  }

  /// The write is not torn: after a failure of the power or of the machine, all of it is there or
  /// nothing (`RWF_ATOMIC`, Linux 6.11). That says nothing of when it is durable; combine it with
  /// ``dataSync`` for that.
  ///
  /// The file has to be direct and have an ``AIOFile/atomicWriteUnit``; the write is of one buffer,
  /// whose count is a power of two within that, at a multiple of its count. Anything else is
  /// refused, before anything is written, with ``AIOError/Code/notSupported`` or
  /// ``AIOError/Code/misaligned``. It is never split.
  public static var atomic: AIOWriteOptions {
    AIOWriteOptions(rawValue: RequestOptions.atomic.rawValue)
  }

  /// The write-back of the bytes begins at once, and they are dropped from the page cache when it
  /// has ended (`RWF_DONTCACHE`, Linux 6.14). Where the kernel or the file system does not have
  /// that, or the file is direct, it is a write like any other: it is advice about memory, and
  /// changes no byte.
  public static var uncached: AIOWriteOptions {
    AIOWriteOptions(rawValue: RequestOptions.uncached.rawValue)
  }
}

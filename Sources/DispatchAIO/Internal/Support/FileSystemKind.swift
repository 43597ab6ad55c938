// SPDX-License-Identifier: Apache-2.0

/// The kind of a file system, as far as it decides which system calls can sleep, and for how long.
enum FileSystemKind: Sendable {
  /// A file system on a disk of this machine, or a disk itself.
  case local
  /// A file system of pages without a disk beneath: tmpfs, ramfs, hugetlbfs.
  case memory
  /// A file system that a process serves.
  case fuse
  /// A file system that another machine serves, or has to be asked about first.
  case network
  /// A file system whose bytes the kernel generates: /proc, /sys and their like.
  case pseudo
  /// A file system that is unknown, or made of others, as overlayfs is.
  case other

  /// Whether no process and no other machine serves it, so that the kernel answers by itself what
  /// it has in memory.
  var isLocal: Bool { self == .local || self == .memory }

  /// - Parameter magic: The `f_type` of `fstatfs(2)`. The numbers are those of `linux/magic.h`, and
  ///   of file systems whose drivers define them privately.
  init(magic: UInt32) {
    switch magic {
    case 0xef53,  // ext2, ext3, ext4
      0x5846_5342,  // XFS
      0x9123_683e,  // Btrfs
      0xf2f5_2010,  // F2FS
      0xca45_1a4e,  // bcachefs
      0x2fc1_2fc1,  // ZFS
      0x4d44,  // FAT
      0x2011_bab0,  // exFAT
      0x7366_746e,  // NTFS
      0x482b, 0x4244,  // HFS+, HFS
      0x3153_464a,  // JFS
      0x3434,  // NILFS2
      0x5265_4973,  // ReiserFS
      0x9660,  // ISO 9660
      0x1501_3346,  // UDF
      0x7371_7368,  // Squashfs
      0xe0f5_e1e2,  // EROFS
      0x28cd_3d45,  // cramfs
      0x2405_1905:  // UBIFS
      self = .local
    case 0x0102_1994,  // tmpfs, and devtmpfs
      0x8584_58f6,  // ramfs
      0x9584_58f6:  // hugetlbfs
      self = .memory
    case 0x6573_5546:  // FUSE, fuseblk too
      self = .fuse
    case 0x6969,  // NFS
      0x517b, 0xff53_4d42, 0xfe53_4d42,  // SMB
      0x00c3_6400,  // Ceph
      0x5346_414f, 0x6b41_4653,  // AFS
      0x7375_7245,  // Coda
      0x0102_1997,  // 9P
      0x0116_1970,  // GFS2
      0x7461_636f,  // OCFS2
      0x0bd0_0bd0,  // Lustre
      0x4750_4653,  // GPFS
      0x1983_0326,  // BeeGFS
      0x786f_4256:  // VirtualBox's shared folders
      self = .network
    case 0x9fa0,  // proc
      0x6265_6572,  // sysfs
      0x6462_6720,  // debugfs
      0x7472_6163,  // tracefs
      0x0027_e0eb, 0x6367_7270,  // cgroup, cgroup2
      0x7363_6673,  // securityfs
      0x6265_6570,  // configfs
      0xcafe_4a11,  // bpf
      0x1cd1,  // devpts
      0x6165_676c,  // pstore
      0xde5e_81e4,  // efivarfs
      0xf97c_ff8c,  // selinuxfs
      0x4249_4e4d,  // binfmt_misc
      0x1980_0202,  // mqueue
      0x6e73_6673,  // nsfs
      0x0904_1934:  // anonymous inodes
      self = .pseudo
    default: self = .other
    }
  }
}

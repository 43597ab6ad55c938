// SPDX-License-Identifier: Apache-2.0
//
// The file calls that Swift's Glibc overlay hides. They may sleep. Each answers as the kernel does:
// 0 or more on success, -errno on failure.

#ifndef CSTORAGE_H
#define CSTORAGE_H

#include <stdint.h>

// fallocate(2) with FALLOC_FL_PUNCH_HOLE: the range reads as zeros, and takes no room. On a block
// device only where the device does that itself.
int cstorage_punch_hole(int fd, int64_t offset, int64_t length);

// fallocate(2) with FALLOC_FL_ZERO_RANGE: the range reads as zeros, and keeps or takes its room.
int cstorage_zero_range(int fd, int64_t offset, int64_t length);

// ioctl(BLKDISCARD) of a block device.
int cstorage_discard(int fd, int64_t offset, int64_t length);

// lseek(2) with SEEK_DATA and SEEK_HOLE.
int64_t cstorage_seek_data(int fd, int64_t offset);
int64_t cstorage_seek_hole(int fd, int64_t offset);

// The byte locks by which QEMU's programs keep out of each other's way (block/file-posix.c): for
// each thing that may be done to an image, a byte that says that its holder does that, and another
// that says that nobody else may. They last until `fd` is closed.
//
// Answers -EAGAIN if another's use and this one exclude each other; any other error is that of a
// file system without such locks.
#define CSTORAGE_READ 1u
#define CSTORAGE_WRITE 2u
#define CSTORAGE_RESIZE 8u
int cstorage_lock_image(int fd, unsigned used, unsigned unshared);

#endif

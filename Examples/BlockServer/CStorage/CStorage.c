// SPDX-License-Identifier: Apache-2.0

#define _GNU_SOURCE
#include "CStorage.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <unistd.h>

static int allocate(int fd, int mode, int64_t offset, int64_t length) {
  int result;
  do {
    result = fallocate(fd, mode | FALLOC_FL_KEEP_SIZE, offset, length);
  } while (result < 0 && errno == EINTR);
  return result < 0 ? -errno : 0;
}

int cstorage_punch_hole(int fd, int64_t offset, int64_t length) {
  return allocate(fd, FALLOC_FL_PUNCH_HOLE, offset, length);
}

int cstorage_zero_range(int fd, int64_t offset, int64_t length) {
  return allocate(fd, FALLOC_FL_ZERO_RANGE, offset, length);
}

int cstorage_discard(int fd, int64_t offset, int64_t length) {
  uint64_t range[2] = {(uint64_t)offset, (uint64_t)length};
  return ioctl(fd, BLKDISCARD, range) < 0 ? -errno : 0;
}

static int64_t seek(int fd, int64_t offset, int whence) {
  off_t result = lseek(fd, offset, whence);
  return result < 0 ? -errno : result;
}

// As QEMU's block/file-posix.c has them.
#define USED_BASE 100
#define UNSHARED_BASE 200

// Whether somebody else holds a lock on a byte.
static int is_locked(int fd, int64_t offset) {
  struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = offset, .l_len = 1};
  if (fcntl(fd, F_OFD_GETLK, &lock) < 0) return -errno;
  return lock.l_type != F_UNLCK;
}

static int lock_byte(int fd, int64_t offset) {
  struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = offset, .l_len = 1};
  return fcntl(fd, F_OFD_SETLK, &lock) < 0 ? -errno : 0;
}

int cstorage_lock_image(int fd, unsigned used, unsigned unshared) {
  int result;
  for (int bit = 0; bit < 4; bit++) {
    if ((used >> bit & 1) && (result = lock_byte(fd, USED_BASE + bit)) < 0) return result;
    if ((unshared >> bit & 1) && (result = lock_byte(fd, UNSHARED_BASE + bit)) < 0) return result;
  }
  // Locked first and looked at then: of two at a time at least one sees the other.
  for (int bit = 0; bit < 4; bit++) {
    if ((used >> bit & 1) && (result = is_locked(fd, UNSHARED_BASE + bit)) != 0)
      return result < 0 ? result : -EAGAIN;
    if ((unshared >> bit & 1) && (result = is_locked(fd, USED_BASE + bit)) != 0)
      return result < 0 ? result : -EAGAIN;
  }
  return 0;
}

int64_t cstorage_seek_data(int fd, int64_t offset) { return seek(fd, offset, SEEK_DATA); }

int64_t cstorage_seek_hole(int fd, int64_t offset) { return seek(fd, offset, SEEK_HOLE); }

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

int64_t cstorage_seek_data(int fd, int64_t offset) { return seek(fd, offset, SEEK_DATA); }

int64_t cstorage_seek_hole(int fd, int64_t offset) { return seek(fd, offset, SEEK_HOLE); }

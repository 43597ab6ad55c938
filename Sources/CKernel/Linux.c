// SPDX-License-Identifier: Apache-2.0

#ifdef __linux__

#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include "CKernel.h"
#include "Platform.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

const int ckernel_o_direct = O_DIRECT;
const int ckernel_o_path = O_PATH;
const int ckernel_o_tmpfile = O_TMPFILE;
const int ckernel_rwf_nowait = RWF_NOWAIT;

// linux/openat2.h, which distributions with headers older than Linux 5.6 do not have.
#ifndef SYS_openat2
#define SYS_openat2 437
#endif
const uint64_t ckernel_resolve_no_mounts = 0x01;       // RESOLVE_NO_XDEV
const uint64_t ckernel_resolve_no_magic_links = 0x02;  // RESOLVE_NO_MAGICLINKS
const uint64_t ckernel_resolve_beneath = 0x08;         // RESOLVE_BENEATH
const uint64_t ckernel_resolve_cached = 0x20;          // RESOLVE_CACHED
const int ckernel_at_cwd = AT_FDCWD;

int ckernel_event_create(void) {
  int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  return fd < 0 ? -errno : fd;
}

int ckernel_event_drain(int fd) {
  uint64_t count;
  ssize_t got;
  do {
    got = read(fd, &count, sizeof count);
  } while (got < 0 && errno == EINTR);
  if (got >= 0) return 1;
  return errno == EAGAIN ? 0 : -errno;
}

int ckernel_event_signal(int fd) {
  const uint64_t one = 1;
  ssize_t put;
  do {
    put = write(fd, &one, sizeof one);
  } while (put < 0 && errno == EINTR);
  return put < 0 ? -errno : 0;
}

int ckernel_poll_set_try(int fd) {
  int set = epoll_create1(EPOLL_CLOEXEC);
  if (set < 0) return -errno;
  struct epoll_event event = {.events = EPOLLIN};
  int result = epoll_ctl(set, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
  close(set);
  return result;
}

int ckernel_poll_set_create(void) {
  int set = epoll_create1(EPOLL_CLOEXEC);
  return set < 0 ? -errno : set;
}

int ckernel_poll_set_add(int set, int fd, uint32_t events, uint64_t data) {
  struct epoll_event event = {.events = events, .data.u64 = data};
  return epoll_ctl(set, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

int ckernel_poll_set_modify(int set, int fd, uint32_t events, uint64_t data) {
  struct epoll_event event = {.events = events, .data.u64 = data};
  return epoll_ctl(set, EPOLL_CTL_MOD, fd, &event) < 0 ? -errno : 0;
}

int ckernel_poll_set_remove(int set, int fd) {
  return epoll_ctl(set, EPOLL_CTL_DEL, fd, NULL) < 0 ? -errno : 0;
}

int ckernel_poll_set_ready(int set, struct ckernel_readiness *ready, int capacity) {
  struct epoll_event events[64];
  if (capacity > 64) capacity = 64;
  int count;
  do {
    count = epoll_wait(set, events, capacity, 0);
  } while (count < 0 && errno == EINTR);
  if (count < 0) return -errno;
  for (int index = 0; index < count; index++) {
    ready[index].events = events[index].events;
    ready[index].data = events[index].data.u64;
  }
  return count;
}

int ckernel_timer_create(void) {
  int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
  return fd < 0 ? -errno : fd;
}

int ckernel_timer_set(int fd, uint64_t nanoseconds) {
  struct itimerspec when = {
      .it_value = {.tv_sec = (time_t)(nanoseconds / 1000000000),
                   .tv_nsec = (long)(nanoseconds % 1000000000)}};
  return timerfd_settime(fd, TFD_TIMER_ABSTIME, &when, NULL) < 0 ? -errno : 0;
}

// struct statx as the kernel lays it out, up to the fields of STATX_DIOALIGN: the headers of
// distributions older than Linux 6.1 do not name them.
struct statx_with_dioalign {
  uint32_t mask;
  uint32_t blksize;
  uint64_t attributes;
  uint32_t nlink, uid, gid;
  uint16_t mode, spare0;
  uint64_t ino, size, blocks, attributes_mask;
  struct {
    int64_t seconds;
    uint32_t nanoseconds, spare;
  } accessed, born, changed, modified;
  uint32_t rdev_major, rdev_minor, dev_major, dev_minor;
  uint64_t mnt_id;
  uint32_t dio_mem_align;
  uint32_t dio_offset_align;
  uint64_t subvol;
  uint32_t atomic_write_unit_min;
  uint32_t atomic_write_unit_max;
  uint64_t spare[10];
};
_Static_assert(sizeof(struct statx_with_dioalign) == 256, "struct statx is 256 bytes");

static const unsigned statx_type = 1, statx_basic_stats = 0x7ff, statx_mount = 0x1000,
                      statx_dioalign = 0x2000, statx_unique_mount = 0x4000,
                      statx_write_atomic = 0x10000;
static const int at_statx_dont_sync = 0x4000;

static uint64_t mount_name(const struct statx_with_dioalign *answer) {
  if (answer->mask & statx_unique_mount) return answer->mnt_id | (uint64_t)1 << 63;
  // A number that may be given to another mount; together with a disk's, that is no matter. What is
  // on no disk has made-up device numbers, which are given again, too.
  if (!(answer->mask & statx_mount) || answer->dev_major == 0) return 0;
  return (uint64_t)answer->dev_major << 52 ^ (uint64_t)answer->dev_minor << 32 ^ answer->mnt_id;
}

int ckernel_status(int fd, int asks_nobody, struct ckernel_status *status) {
  struct statx_with_dioalign answer = {0};
  const unsigned mask = asks_nobody ? statx_type : statx_basic_stats | statx_dioalign | statx_write_atomic;
  const int flags = AT_EMPTY_PATH | (asks_nobody ? at_statx_dont_sync : 0);
  if (syscall(SYS_statx, fd, "", flags, mask | statx_mount | statx_unique_mount, &answer) < 0) {
    // fstat may ask the file's server.
    return asks_nobody ? -errno : ckernel_status_by_fstat(fd, status);
  }
  *status = (struct ckernel_status){
      .size = (int64_t)answer.size,
      .modified_seconds = answer.modified.seconds,
      .changed_seconds = answer.changed.seconds,
      .modified_nanoseconds = answer.modified.nanoseconds,
      .changed_nanoseconds = answer.changed.nanoseconds,
      .inode = answer.ino,
      .links = answer.nlink,
      .device = makedev(answer.dev_major, answer.dev_minor),
      .represented_device = makedev(answer.rdev_major, answer.rdev_minor),
      .mount = mount_name(&answer),
      .mode = answer.mode,
      .has_alignment = (answer.mask & statx_dioalign) != 0,
      .memory_alignment = answer.dio_mem_align,
      .offset_alignment = answer.dio_offset_align};
  if (answer.mask & statx_write_atomic) {
    status->atomic_unit_minimum = answer.atomic_write_unit_min;
    status->atomic_unit_maximum = answer.atomic_write_unit_max;
  }
  return 0;
}

int ckernel_open(int directory, const char *path, int flags, mode_t mode, uint64_t resolve) {
  // struct open_how.
  struct {
    uint64_t flags, mode, resolve;
  } how = {.flags = (uint64_t)flags, .mode = mode, .resolve = resolve};
  int attempts = 0;
  while (1) {
    const long fd = resolve ? syscall(SYS_openat2, directory, path, &how, sizeof how)
                            : openat(directory, path, flags, mode);
    if (fd >= 0) return (int)fd;
    if (errno == EINTR) continue;
    if (errno == EAGAIN && resolve && !(resolve & ckernel_resolve_cached) && ++attempts < 64) {
      continue;
    }
    return -errno;
  }
}

int ckernel_set_direct(int fd) {
  const int flags = fcntl(fd, F_GETFL);
  return flags < 0 || fcntl(fd, F_SETFL, flags | O_DIRECT) < 0 ? -errno : 0;
}

int ckernel_file_system(int fd, struct ckernel_file_system *answer) {
  struct statfs status;
  if (fstatfs(fd, &status) < 0) return -errno;
  answer->magic = (uint32_t)status.f_type;
  answer->is_synchronous = (status.f_flags & ST_SYNCHRONOUS) != 0;
  return 0;
}

int ckernel_cache_block_map(int fd) {
  const unsigned ext4_super_magic = 0xef53;
  struct statfs status;
  if (fstatfs(fd, &status) < 0) return -errno;
  // Elsewhere the number may mean another thing, and FUSE would ask its process.
  if ((uint32_t)status.f_type != ext4_super_magic) return 0;
  return ioctl(fd, _IO('f', 18)) < 0 ? -errno : 0;
}

int ckernel_platform_reopen(int fd, int flags) {
  char path[32];
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  return ckernel_open(AT_FDCWD, path, flags, 0, 0);
}

int64_t ckernel_cached_bytes(int fd, int64_t offset, int64_t length) {
  // The headers of distributions older than Linux 6.5 do not name them; the number is the same on
  // every architecture.
  struct {
    uint64_t offset, length;
  } range = {(uint64_t)offset, (uint64_t)length};
  struct {
    uint64_t cached, dirty, writeback, evicted, recently_evicted;
  } answer = {0};
  if (syscall(451, fd, &range, &answer, 0) < 0) return -errno;
  return (int64_t)answer.cached * sysconf(_SC_PAGESIZE);
}

int ckernel_is_cached(int fd, int64_t offset, int64_t length, int64_t known_size) {
  const int64_t page = sysconf(_SC_PAGESIZE);
  const int64_t cached = ckernel_cached_bytes(fd, offset, length);
  if (cached < 0) return (int)cached;
  int64_t end = offset + length;
  const int64_t start = offset / page * page;
  // The last page may be cut off by the largest offset there is.
  if (cached >= end - start) return 1;
  if (cached == 0 && offset < known_size) return 0;
  struct stat status;
  if (fstat(fd, &status) < 0) return -errno;
  if (S_ISREG(status.st_mode) && status.st_size < end) end = status.st_size;
  return end <= offset || cached >= end - start;
}

int64_t ckernel_read_at(int fd, void *memory, uintptr_t length, int64_t offset, int is_nowait) {
  const struct iovec vector = {memory, length};
  ssize_t count;
  do {
    count = preadv2(fd, &vector, 1, offset, is_nowait ? RWF_NOWAIT : 0);
  } while (count < 0 && errno == EINTR);
  return count < 0 ? -errno : count;
}

int64_t ckernel_platform_sendfile(int socket, int fd, int64_t offset, uint64_t count) {
  const ssize_t result = sendfile(socket, fd, &offset, count);
  return result < 0 ? -errno : result;
}

void ckernel_platform_take_signal(const sigset_t *only, int number) {
  (void)number;
  const struct timespec now = {0, 0};
  while (sigtimedwait(only, NULL, &now) < 0 && errno == EINTR) {
  }
}

int ckernel_block_device_sector_size(int fd) {
  int size;
  return ioctl(fd, BLKSSZGET, &size) < 0 ? -errno : size;
}

int64_t ckernel_block_device_size(int fd) {
  uint64_t size;
  if (ioctl(fd, BLKGETSIZE64, &size) < 0) return -errno;
  return size > INT64_MAX ? -EOVERFLOW : (int64_t)size;
}

int ckernel_fsync(int fd) { return fsync(fd) < 0 ? -errno : 0; }

int ckernel_fdatasync(int fd) { return fdatasync(fd) < 0 ? -errno : 0; }

int ckernel_advise(int fd, int64_t offset, int64_t length, enum ckernel_advice advice) {
  static const int numbers[] = {
      [ckernel_advice_normal] = POSIX_FADV_NORMAL,
      [ckernel_advice_sequential] = POSIX_FADV_SEQUENTIAL,
      [ckernel_advice_random] = POSIX_FADV_RANDOM,
      [ckernel_advice_no_reuse] = POSIX_FADV_NOREUSE,
      [ckernel_advice_will_need] = POSIX_FADV_WILLNEED,
      [ckernel_advice_dont_need] = POSIX_FADV_DONTNEED,
  };
  return -posix_fadvise(fd, offset, length, numbers[advice]);
}

const int ckernel_falloc_punch_hole = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
const int ckernel_falloc_zero_range = FALLOC_FL_ZERO_RANGE;
const int ckernel_falloc_collapse_range = FALLOC_FL_COLLAPSE_RANGE;

int ckernel_fallocate(int fd, int mode, int64_t offset, int64_t length) {
  struct ckernel_size_signal signal;
  ckernel_size_signal_block(&signal);
  int result;
  do {
    result = fallocate(fd, mode, offset, length) < 0 ? -errno : 0;
  } while (result == -EINTR);
  ckernel_size_signal_restore(&signal, result == -EFBIG);
  return result;
}

int64_t ckernel_preadv(int fd, const void *vectors, int count, int64_t offset, int flags) {
  const ssize_t answer = flags ? preadv2(fd, vectors, count, offset, flags)
                               : preadv(fd, vectors, count, offset);
  return answer < 0 ? -errno : answer;
}

int64_t ckernel_pwritev(int fd, const void *vectors, int count, int64_t offset, int flags) {
  const ssize_t answer = flags ? pwritev2(fd, vectors, count, offset, flags)
                               : pwritev(fd, vectors, count, offset);
  return answer < 0 ? -errno : answer;
}

int64_t ckernel_append(int fd, const void *vectors, int count, int flags, int64_t *start) {
  // The offset -1 asks for the file position to be used, and moved.
  const ssize_t answer = pwritev2(fd, vectors, count, -1, flags | RWF_APPEND);
  if (answer < 0) return -errno;
  const off_t end = lseek(fd, 0, answer > 0 ? SEEK_CUR : SEEK_END);
  if (end < 0) return -errno;
  *start = end - answer;
  return answer;
}

int64_t ckernel_copy_range(int from, int64_t from_offset, int to, int64_t to_offset,
                          int64_t length) {
  off64_t in = from_offset, out = to_offset;
  ssize_t answer;
  do {
    answer = copy_file_range(from, &in, to, &out, (size_t)length, 0);
  } while (answer < 0 && errno == EINTR);
  return answer < 0 ? -errno : answer;
}

int ckernel_clone_range(int from, int64_t from_offset, int64_t length, int to, int64_t to_offset) {
  struct file_clone_range range = {.src_fd = from,
                                   .src_offset = (uint64_t)from_offset,
                                   .src_length = (uint64_t)length,
                                   .dest_offset = (uint64_t)to_offset};
  return ioctl(to, FICLONERANGE, &range) < 0 ? -errno : 0;
}

int ckernel_rename(int from, const char *old_name, int to, const char *new_name, int exclusive) {
  return renameat2(from, old_name, to, new_name, exclusive ? RENAME_NOREPLACE : 0) < 0 ? -errno
                                                                                       : 0;
}

int ckernel_link(int fd, int directory, const char *name) {
  char path[32];
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  return linkat(AT_FDCWD, path, directory, name, AT_SYMLINK_FOLLOW) < 0 ? -errno : 0;
}

#endif

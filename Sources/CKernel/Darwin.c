// SPDX-License-Identifier: Apache-2.0
//
// Darwin has no kernel AIO worth the name (aio_read(2) takes 16 requests of a process, on threads),
// no RWF_NOWAIT, and no page cache that tells: the library's requests are system calls on threads
// there, with the loop, its sources and its timers on a kqueue(2).

#ifdef __APPLE__

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/disk.h>
#include <sys/event.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/param.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/stdio.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#include "CKernel.h"
#include "Platform.h"

// FNOCACHE, by which F_GETFL tells that F_NOCACHE was set (bsd/sys/fcntl.h), and a number that
// open(2) does not use; ckernel_open takes both out.
const int ckernel_o_direct = 0x00040000;
const int ckernel_o_tmpfile = 0x10000000;
const int ckernel_o_path = O_EVTONLY;
const int ckernel_rwf_nowait = 0x08;

const uint64_t ckernel_resolve_no_mounts = 0x01;
const uint64_t ckernel_resolve_no_magic_links = 0x02;
const uint64_t ckernel_resolve_beneath = 0x08;
const uint64_t ckernel_resolve_cached = 0x20;
const int ckernel_at_cwd = AT_FDCWD;

// Options of a write, as Linux numbers them (linux/fs.h).
enum { rwf_dsync = 0x02, rwf_sync = 0x04 };

// MARK: Opening

int ckernel_set_direct(int fd) { return fcntl(fd, F_NOCACHE, 1) < 0 ? -errno : 0; }

int ckernel_open(int directory, const char *path, int flags, mode_t mode, uint64_t resolve) {
  // No name is looked up without asking the file system.
  if (resolve & ckernel_resolve_cached) return -EAGAIN;
  if (flags & ckernel_o_tmpfile) return -EOPNOTSUPP;
  int asked = flags & ~ckernel_o_direct;
  if (resolve & ckernel_resolve_beneath) asked |= O_RESOLVE_BENEATH;
  if (flags & ckernel_o_path) {
    // Nobody is waited for at the other end of a FIFO, and no terminal becomes the process's.
    asked |= O_NONBLOCK | O_NOCTTY;
    // To search a directory is not to read it; and a link itself is what is looked up.
    if (flags & O_DIRECTORY) asked = (asked & ~O_EVTONLY) | O_SEARCH;
    if (flags & O_NOFOLLOW) asked = (asked & ~O_NOFOLLOW) | O_SYMLINK;
  }
  int fd;
  do {
    fd = openat(directory, path, asked, mode);
  } while (fd < 0 && errno == EINTR);
  if (fd < 0) return -errno;
  if (!(flags & ckernel_o_direct)) return fd;
  const int answer = ckernel_set_direct(fd);
  if (answer == 0) return fd;
  close(fd);
  return answer;
}

int ckernel_platform_reopen(int fd, int flags) {
  char path[MAXPATHLEN];
  if (fcntl(fd, F_GETPATH, path) < 0) return -errno;
  return ckernel_open(AT_FDCWD, path, flags | O_NOFOLLOW, 0, 0);
}

int ckernel_link(int fd, int directory, const char *name) {
  (void)fd, (void)directory, (void)name;
  return -EOPNOTSUPP;
}

int ckernel_rename(int from, const char *old_name, int to, const char *new_name, int exclusive) {
  return renameatx_np(from, old_name, to, new_name, exclusive ? RENAME_EXCL : 0) < 0 ? -errno : 0;
}

// MARK: What a file is

int ckernel_status(int fd, int asks_nobody, struct ckernel_status *status) {
  (void)asks_nobody;
  const int answer = ckernel_status_by_fstat(fd, status);
  if (answer < 0) return answer;
  // F_NOCACHE copies what is not aligned.
  status->has_alignment = 1;
  status->memory_alignment = status->offset_alignment = 1;
  return 0;
}

// The f_type of the like on Linux.
static uint32_t magic(const struct statfs *mount) {
  static const struct {
    const char *name;
    uint32_t magic;
  } kinds[] = {
      {"apfs", 0x482b},     {"hfs", 0x482b},        {"msdos", 0x4d44},
      {"exfat", 0x2011bab0}, {"udf", 0x15013346},    {"cd9660", 0x9660},
      {"tmpfs", 0x01021994}, {"macfuse", 0x65735546}, {"osxfuse", 0x65735546},
      {"devfs", 0x9fa0},
  };
  for (size_t index = 0; index < sizeof kinds / sizeof kinds[0]; index++) {
    if (strcmp(mount->f_fstypename, kinds[index].name) == 0) return kinds[index].magic;
  }
  const uint32_t nfs = 0x6969;
  return mount->f_flags & MNT_LOCAL ? 0 : nfs;
}

int ckernel_file_system(int fd, struct ckernel_file_system *answer) {
  struct statfs mount;
  if (fstatfs(fd, &mount) < 0) return -errno;
  answer->magic = magic(&mount);
  answer->is_synchronous = (mount.f_flags & MNT_SYNCHRONOUS) != 0;
  return 0;
}

int ckernel_cache_block_map(int fd) {
  (void)fd;
  return 0;
}

int ckernel_block_device_sector_size(int fd) {
  uint32_t size;
  return ioctl(fd, DKIOCGETBLOCKSIZE, &size) < 0 ? -errno : (int)size;
}

int64_t ckernel_block_device_size(int fd) {
  uint32_t size;
  uint64_t count;
  if (ioctl(fd, DKIOCGETBLOCKSIZE, &size) < 0 || ioctl(fd, DKIOCGETBLOCKCOUNT, &count) < 0) {
    return -errno;
  }
  int64_t bytes;
  return __builtin_mul_overflow(size, count, &bytes) ? -EOVERFLOW : bytes;
}

// MARK: The page cache, which does not tell what it has

int64_t ckernel_cached_bytes(int fd, int64_t offset, int64_t length) {
  (void)fd, (void)offset, (void)length;
  return -ENOSYS;
}

int ckernel_is_cached(int fd, int64_t offset, int64_t length, int64_t known_size) {
  (void)fd, (void)offset, (void)length, (void)known_size;
  return -ENOSYS;
}

int64_t ckernel_read_at(int fd, void *memory, uintptr_t length, int64_t offset, int is_nowait) {
  if (is_nowait) return -EOPNOTSUPP;
  ssize_t count;
  do {
    count = pread(fd, memory, length, offset);
  } while (count < 0 && errno == EINTR);
  return count < 0 ? -errno : count;
}

int ckernel_advise(int fd, int64_t offset, int64_t length, enum ckernel_advice advice) {
  switch (advice) {
    case ckernel_advice_will_need: {
      const int64_t most = INT32_MAX;
      struct radvisory range = {offset, (int)(length > 0 && length < most ? length : most)};
      // The end of the file is no error.
      return fcntl(fd, F_RDADVISE, &range) < 0 && errno != EFBIG ? -errno : 0;
    }
    case ckernel_advice_random:
      return fcntl(fd, F_RDAHEAD, 0) < 0 ? -errno : 0;
    case ckernel_advice_normal:
    case ckernel_advice_sequential:
      return fcntl(fd, F_RDAHEAD, 1) < 0 ? -errno : 0;
    case ckernel_advice_no_reuse:
    case ckernel_advice_dont_need:
      return 0;
  }
}

// MARK: Transfers

int64_t ckernel_preadv(int fd, const void *vectors, int count, int64_t offset, int flags) {
  if (flags) return -EOPNOTSUPP;
  const ssize_t answer = preadv(fd, vectors, count, offset);
  return answer < 0 ? -errno : answer;
}

int64_t ckernel_pwritev(int fd, const void *vectors, int count, int64_t offset, int flags) {
  if (flags & ~(rwf_dsync | rwf_sync)) return -EOPNOTSUPP;
  const ssize_t answer = pwritev(fd, vectors, count, offset);
  if (answer < 0) return -errno;
  const int synced = flags ? ckernel_fsync(fd) : 0;
  return synced < 0 ? synced : answer;
}

// O_APPEND finds the end and writes in one step, and its description's position tells where.
static int64_t append(int fd, const void *vectors, int count, int flags, int64_t *start) {
  const ssize_t answer = writev(fd, vectors, count);
  if (answer < 0) return -errno;
  const off_t end = lseek(fd, 0, answer > 0 ? SEEK_CUR : SEEK_END);
  if (end < 0) return -errno;
  *start = end - answer;
  const int synced = flags ? ckernel_fsync(fd) : 0;
  return synced < 0 ? synced : answer;
}

// A description without O_APPEND gets one beside it for the call.
int64_t ckernel_append(int fd, const void *vectors, int count, int flags, int64_t *start) {
  if (flags & ~(rwf_dsync | rwf_sync)) return -EOPNOTSUPP;
  const int own = fcntl(fd, F_GETFL);
  if (own < 0) return -errno;
  const int file = own & O_APPEND ? fd : ckernel_reopen(fd, O_WRONLY | O_APPEND, ckernel_o_direct);
  if (file < 0) return file;
  const int64_t answer = append(file, vectors, count, flags, start);
  if (file != fd) close(file);
  return answer;
}

int ckernel_fsync(int fd) {
  if (fcntl(fd, F_FULLFSYNC) == 0) return 0;
  // A file system without it, as those of other machines.
  if (errno != ENOTSUP && errno != EINVAL && errno != ENOTTY) return -errno;
  return fsync(fd) < 0 ? -errno : 0;
}

int ckernel_fdatasync(int fd) { return ckernel_fsync(fd); }

int64_t ckernel_platform_sendfile(int socket, int fd, int64_t offset, uint64_t count) {
  // 0 would be up to the end of the file.
  if (count == 0) return 0;
  off_t sent = (off_t)count;
  // What was sent before a signal, or before the socket had no more room, counts.
  if (sendfile(fd, socket, offset, &sent, NULL, 0) < 0 && sent == 0) {
    return errno == ENOTSUP ? -EOPNOTSUPP : -errno;
  }
  return sent;
}

int64_t ckernel_copy_range(int from, int64_t from_offset, int to, int64_t to_offset,
                           int64_t length) {
  (void)from, (void)from_offset, (void)to, (void)to_offset, (void)length;
  return -EOPNOTSUPP;
}

int ckernel_clone_range(int from, int64_t from_offset, int64_t length, int to, int64_t to_offset) {
  (void)from, (void)from_offset, (void)length, (void)to, (void)to_offset;
  return -EOPNOTSUPP;
}

// MARK: Ranges

// F_PREALLOCATE does not cover holes, and whole blocks are all that F_PUNCHHOLE takes: neither is
// what fallocate(2) promises.
const int ckernel_falloc_punch_hole = 1;
const int ckernel_falloc_zero_range = 2;
const int ckernel_falloc_collapse_range = 4;

int ckernel_fallocate(int fd, int mode, int64_t offset, int64_t length) {
  (void)fd, (void)mode, (void)offset, (void)length;
  return -EOPNOTSUPP;
}

// MARK: Signals

void ckernel_platform_take_signal(const sigset_t *only, int number) {
  sigset_t pending;
  if (sigpending(&pending) == 0 && sigismember(&pending, number)) {
    int taken;
    sigwait(only, &taken);
  }
}

#endif

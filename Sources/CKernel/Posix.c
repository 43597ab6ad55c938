// SPDX-License-Identifier: Apache-2.0
//
// What Linux and Darwin share, but for a few details.

#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "CKernel.h"
#include "Platform.h"

uint64_t ckernel_monotonic_nanoseconds(void) {
  struct timespec now;
#ifdef __APPLE__
  // That of Dispatch's and kqueue's timers: it stands while the machine sleeps.
  clock_gettime(CLOCK_UPTIME_RAW, &now);
#else
  clock_gettime(CLOCK_MONOTONIC, &now);
#endif
  return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

int64_t ckernel_bytes_available(int fd) {
  int count = 0;
  return ioctl(fd, FIONREAD, &count) < 0 ? -errno : count;
}

int64_t ckernel_link_count(int fd) {
  struct stat stat;
  return fstat(fd, &stat) < 0 ? -errno : (int64_t)stat.st_nlink;
}

#ifdef __APPLE__
#define st_mtim st_mtimespec
#define st_ctim st_ctimespec
#endif

int ckernel_status_by_fstat(int fd, struct ckernel_status *status) {
  struct stat stat;
  if (fstat(fd, &stat) < 0) return -errno;
  *status = (struct ckernel_status){
      .size = stat.st_size,
      .modified_seconds = stat.st_mtim.tv_sec,
      .changed_seconds = stat.st_ctim.tv_sec,
      .modified_nanoseconds = (uint32_t)stat.st_mtim.tv_nsec,
      .changed_nanoseconds = (uint32_t)stat.st_ctim.tv_nsec,
      .inode = stat.st_ino,
      .links = stat.st_nlink,
      .device = (uint64_t)stat.st_dev,
      .represented_device = (uint64_t)stat.st_rdev,
      .mode = stat.st_mode};
  return 0;
}

int ckernel_is_among_last(int fd) {
  const int spare = 16;
  struct rlimit limit;
  return getrlimit(RLIMIT_NOFILE, &limit) == 0 && (rlim_t)fd + spare >= limit.rlim_cur;
}

int ckernel_reopen(int fd, int mode, int kept) {
  const int flags = fcntl(fd, F_GETFL);
  if (flags < 0) return -errno;
  const int again = ckernel_platform_reopen(fd, mode | O_CLOEXEC | (flags & kept));
  if (again < 0) return again;
  struct stat old_status, new_status;
  if (fstat(fd, &old_status) == 0 && fstat(again, &new_status) == 0 &&
      old_status.st_dev == new_status.st_dev && old_status.st_ino == new_status.st_ino) {
    return again;
  }
  close(again);
  return -ESTALE;
}

#ifndef O_NOATIME
#define O_NOATIME 0  // Darwin has none
#endif

int ckernel_reopen_direct(int fd) {
  const int again = ckernel_reopen(fd, O_RDONLY | ckernel_o_direct, O_NOATIME);
  if (again < 0 || !ckernel_is_among_last(again)) return again;
  close(again);
  return -EMFILE;
}

int ckernel_reopen_buffered(int fd) {
  return ckernel_reopen(fd, O_WRONLY, O_NOATIME | O_APPEND | O_DSYNC | O_SYNC);
}

int ckernel_check_socket(int fd) {
  int type;
  socklen_t size = sizeof type;
  if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) < 0) return -errno;
  if (type != SOCK_STREAM) return -EPROTOTYPE;
  const int flags = fcntl(fd, F_GETFL);
  if (flags < 0) return -errno;
  return flags & O_NONBLOCK ? 0 : -EWOULDBLOCK;
}

static int64_t send_file(int socket, int fd, int64_t offset, uint64_t count) {
  int64_t result;
  do {
    result = ckernel_platform_sendfile(socket, fd, offset, count);
  } while (result == -EINTR);
  return result;
}

int64_t ckernel_sendfile(int socket, int fd, int64_t offset, uint64_t count) {
  // Most servers ignore SIGPIPE: to ask is one system call, to block it two.
  struct sigaction action;
  if (sigaction(SIGPIPE, NULL, &action) == 0 && !(action.sa_flags & SA_SIGINFO) &&
      action.sa_handler == SIG_IGN) {
    return send_file(socket, fd, offset, count);
  }
  sigset_t only, mask;
  sigemptyset(&only);
  sigaddset(&only, SIGPIPE);
  pthread_sigmask(SIG_BLOCK, &only, &mask);
  int64_t answer = send_file(socket, fd, offset, count);
  if (!sigismember(&mask, SIGPIPE)) {
    // Where it was not masked, none was pending: this one is ours.
    if (answer == -EPIPE) ckernel_platform_take_signal(&only, SIGPIPE);
    pthread_sigmask(SIG_SETMASK, &mask, NULL);
  }
  return answer;
}

#ifndef MSG_MORE
#define MSG_MORE 0  // Darwin sends at once
#endif

int64_t ckernel_send(int socket, const void *first, uint64_t first_count, const void *second,
                    uint64_t second_count, int has_more) {
  const int flags = MSG_NOSIGNAL | MSG_DONTWAIT | (has_more ? MSG_MORE : 0);
  struct iovec pieces[2] = {{(void *)first, first_count}, {(void *)second, second_count}};
  const struct msghdr message = {.msg_iov = pieces, .msg_iovlen = second_count ? 2 : 1};
  ssize_t result;
  do {
    result = sendmsg(socket, &message, flags);
  } while (result < 0 && errno == EINTR);
  return result < 0 ? -errno : result;
}

static void only_size_signal(sigset_t *set) {
  sigemptyset(set);
  sigaddset(set, SIGXFSZ);
}

// Once found masked: Dispatch's threads mask it for good.
static _Thread_local int is_size_signal_masked;

int ckernel_masks_size_signal(void) {
  if (is_size_signal_masked) return 1;
  sigset_t mask;
  pthread_sigmask(SIG_BLOCK, NULL, &mask);
  is_size_signal_masked = sigismember(&mask, SIGXFSZ);
  return is_size_signal_masked;
}

void ckernel_size_signal_block(struct ckernel_size_signal *signal) {
  sigset_t only, pending;
  only_size_signal(&only);
  pthread_sigmask(SIG_BLOCK, &only, &signal->mask);
  sigpending(&pending);
  signal->was_pending = sigismember(&pending, SIGXFSZ);
}

void ckernel_size_signal_restore(const struct ckernel_size_signal *signal, int may_be_raised) {
  if (may_be_raised && !signal->was_pending) {
    sigset_t only;
    only_size_signal(&only);
    ckernel_platform_take_signal(&only, SIGXFSZ);
  }
  pthread_sigmask(SIG_SETMASK, &signal->mask, NULL);
}

int ckernel_ftruncate(int fd, int64_t size) {
  struct ckernel_size_signal signal;
  ckernel_size_signal_block(&signal);
  int result;
  do {
    result = ftruncate(fd, size) < 0 ? -errno : 0;
  } while (result == -EINTR);
  ckernel_size_signal_restore(&signal, result == -EFBIG);
  return result;
}

int ckernel_lock(int fd, int type, int64_t start, int64_t length) {
  struct flock lock = {
      .l_type = (short)type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
  if (fcntl(fd, F_OFD_SETLK, &lock) == 0) return 0;
  return errno == EACCES ? -EAGAIN : -errno;
}

int64_t ckernel_seek(int fd, int64_t offset, int hole) {
  const off_t answer = lseek(fd, offset, hole ? SEEK_HOLE : SEEK_DATA);
  return answer < 0 ? -errno : answer;
}

#if __has_feature(thread_sanitizer)
void __tsan_acquire(void *);
void __tsan_release(void *);
void ckernel_happens_before(uintptr_t identity) { __tsan_release((void *)identity); }
void ckernel_happens_after(uintptr_t identity) { __tsan_acquire((void *)identity); }
#else
void ckernel_happens_before(uintptr_t identity) { (void)identity; }
void ckernel_happens_after(uintptr_t identity) { (void)identity; }
#endif

int ckernel_is_resident(const void *base, uintptr_t length) {
  if (length == 0) return 1;
  // To look would take long, and to hand so much over takes little beside it.
  if (length > (uintptr_t)8 << 20) return 0;
  const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
  uintptr_t at = (uintptr_t)base & ~(page - 1);
  const uintptr_t end = (uintptr_t)base + length;
  ckernel_platform_page pages[256];
  while (at < end) {
    uintptr_t count = (end - at + page - 1) / page;
    if (count > sizeof pages) count = sizeof pages;
    // ENOMEM: not mapped at all, which the kernel will answer with EFAULT.
    if (mincore((void *)at, count * page, pages) < 0) return 1;
    for (uintptr_t index = 0; index < count; index++) {
      if (!(pages[index] & 1)) return 0;
    }
    at += count * page;
  }
  return 1;
}

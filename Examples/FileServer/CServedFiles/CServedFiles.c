// SPDX-License-Identifier: Apache-2.0

#define _GNU_SOURCE
#include "CServedFiles.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static int open_place(int directory, const char *path, int flags) {
  struct open_how how = {
      .flags = O_PATH | O_CLOEXEC | flags,
      .resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS};
  long result;
  // EAGAIN: somebody renamed a directory on the way meanwhile.
  int attempts = 0;
  do {
    result = syscall(SYS_openat2, directory, path, &how, sizeof how);
  } while (result < 0 && (errno == EINTR || (errno == EAGAIN && ++attempts < 64)));
  return result < 0 ? -errno : (int)result;
}

int cserved_open_place(int directory, const char *path) {
  return open_place(directory, path, O_DIRECTORY);
}

int cserved_reopen(int place, int flags) {
  char path[32];
  snprintf(path, sizeof path, "/proc/self/fd/%d", place);
  int result;
  do {
    result = open(path, flags | O_CLOEXEC | O_NOCTTY);
  } while (result < 0 && errno == EINTR);
  return result < 0 ? -errno : result;
}

static int answer(int result, const struct stat *from, struct cserved_status *to) {
  if (result < 0) return -errno;
  to->size = from->st_size;
  to->modified_seconds = from->st_mtim.tv_sec;
  to->changed_seconds = from->st_ctim.tv_sec;
  to->changed_nanoseconds = from->st_ctim.tv_nsec;
  to->links = from->st_nlink;
  to->type = from->st_mode & S_IFMT;
  return 0;
}

int cserved_status(int fd, struct cserved_status *status) {
  struct stat stat;
  int result = fstat(fd, &stat);
  return answer(result, &stat, status);
}

int cserved_status_at(int directory, const char *name, struct cserved_status *status) {
  struct stat stat;
  int result = fstatat(directory, name, &stat, AT_SYMLINK_NOFOLLOW);
  return answer(result, &stat, status);
}

int cserved_status_beneath(int directory, const char *path, struct cserved_status *status) {
  int place = open_place(directory, path, 0);
  if (place < 0) return place;
  int result = cserved_status(place, status);
  close(place);
  return result;
}

int64_t cserved_read_cached(int fd, void *memory, size_t count, int64_t offset) {
  struct iovec vector = {memory, count};
  ssize_t result = preadv2(fd, &vector, 1, offset, RWF_NOWAIT);
  return result < 0 ? -errno : result;
}

int64_t cserved_send(
    int socket, const void *first, size_t first_count, const void *second, size_t second_count,
    int has_more) {
  int flags = MSG_NOSIGNAL | (has_more ? MSG_MORE : 0);
  struct iovec pieces[2] = {{(void *)first, first_count}, {(void *)second, second_count}};
  struct msghdr message = {.msg_iov = pieces, .msg_iovlen = 2};
  ssize_t result;
  do {
    result = second_count ? sendmsg(socket, &message, flags)
                          : send(socket, first, first_count, flags);
  } while (result < 0 && errno == EINTR);
  return result < 0 ? -errno : result;
}

uint64_t cserved_coarse_nanoseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
  return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

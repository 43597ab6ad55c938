// SPDX-License-Identifier: Apache-2.0

#define _GNU_SOURCE
#include "CFiles.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

int cfiles_open_unnamed(const char *directory, bool is_direct) {
  int flags = O_TMPFILE | O_RDWR | O_CLOEXEC | (is_direct ? O_DIRECT : 0);
  int answer = open(directory, flags, 0600);
  return answer < 0 ? -errno : answer;
}

int cfiles_link(int fd, const char *path) {
  char name[32];
  snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
  return linkat(AT_FDCWD, name, AT_FDCWD, path, AT_SYMLINK_FOLLOW) < 0 ? -errno : 0;
}

bool cfiles_is_append_only(const char *directory) {
  struct statx status;
  return statx(AT_FDCWD, directory, 0, STATX_MODE, &status) == 0 &&
         (status.stx_attributes & STATX_ATTR_APPEND) != 0;
}

int cfiles_make_buffered(int fd) {
  int flags = fcntl(fd, F_GETFL);
  if (flags < 0) return -errno;
  return fcntl(fd, F_SETFL, flags & ~O_DIRECT) < 0 ? -errno : 0;
}

long cfiles_list_attributes(int fd, char *names, size_t size) {
  ssize_t answer = flistxattr(fd, names, size);
  return answer < 0 ? -errno : answer;
}

long cfiles_get_attribute(int fd, const char *name, void *value, size_t size) {
  ssize_t answer = fgetxattr(fd, name, value, size);
  return answer < 0 ? -errno : answer;
}

int cfiles_set_attribute(int fd, const char *name, const void *value, size_t size) {
  return fsetxattr(fd, name, value, size, 0) < 0 ? -errno : 0;
}

int cfiles_remove_attribute(int fd, const char *name) {
  return fremovexattr(fd, name) < 0 ? -errno : 0;
}

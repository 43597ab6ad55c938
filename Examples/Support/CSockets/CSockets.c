// SPDX-License-Identifier: Apache-2.0

#define _GNU_SOURCE
#include "CSockets.h"

#include <errno.h>

int csockets_accept(int fd, struct sockaddr_storage *address, socklen_t *length) {
  *length = sizeof *address;
  int answer = accept4(fd, (struct sockaddr *)address, length, SOCK_NONBLOCK | SOCK_CLOEXEC);
  return answer < 0 ? -errno : answer;
}

int csockets_stream_socket(int family) {
  int answer = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  return answer < 0 ? -errno : answer;
}

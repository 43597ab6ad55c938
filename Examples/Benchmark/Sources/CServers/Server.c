// SPDX-License-Identifier: Apache-2.0

#define _GNU_SOURCE
#include "CServers.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int file;
static uint64_t size_of_file;
static uint32_t size_of_message;
static atomic_uint_fast64_t next_offset;

static void *serve(void *argument) {
  int client = (int)(intptr_t)argument;
  char *memory;
  if (posix_memalign((void **)&memory, 4096, size_of_message) != 0) abort();
  while (recv(client, memory, size_of_message, MSG_WAITALL) == (ssize_t)size_of_message) {
    uint64_t offset = atomic_fetch_add(&next_offset, size_of_message) % size_of_file;
    if (pwrite(file, memory, size_of_message, (off_t)offset) != (ssize_t)size_of_message ||
        fdatasync(file) != 0) {
      perror("c-server");
      exit(1);
    }
    if (send(client, memory, size_of_message, MSG_NOSIGNAL) != (ssize_t)size_of_message) break;
  }
  close(client);
  free(memory);
  return NULL;
}

int cservers_serve(const char *path, uint64_t file_size, uint32_t message_size) {
  size_of_message = message_size;
  size_of_file = file_size / message_size * message_size;
  file = open(path, O_RDWR | O_CREAT | O_TRUNC | O_DIRECT | O_CLOEXEC, 0644);
  if (file < 0) return errno;
  const size_t piece = 1 << 20;
  char *zeros;
  if (posix_memalign((void **)&zeros, 4096, piece) != 0) abort();
  memset(zeros, 0, piece);
  for (uint64_t offset = 0; offset < size_of_file; offset += piece) {
    if (pwrite(file, zeros, piece, (off_t)offset) != (ssize_t)piece) return errno ? errno : EIO;
  }
  free(zeros);
  if (fsync(file) != 0) return errno;

  int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t length = sizeof address;
  if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) < 0 ||
      listen(listener, 1024) < 0 ||
      getsockname(listener, (struct sockaddr *)&address, &length) < 0) {
    return errno;
  }
  printf("listening on 127.0.0.1:%d\n", ntohs(address.sin_port));
  fflush(stdout);
  for (;;) {
    int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (client < 0) {
      if (errno == EINTR || errno == ECONNABORTED) continue;
      return errno;
    }
    int yes = 1;
    setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    pthread_t thread;
    int error = pthread_create(&thread, NULL, serve, (void *)(intptr_t)client);
    if (error) return error;
    pthread_detach(thread);
  }
}

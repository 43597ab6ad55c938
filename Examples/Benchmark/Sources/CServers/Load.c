// SPDX-License-Identifier: Apache-2.0

#define _GNU_SOURCE
#include "CServers.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

struct connection {
  int fd;
  char *request;   // the whole of it
  size_t request_length;
  char *message;   // within the request
  char *answer;
  size_t answered;
  uint64_t sent;   // when
};

struct cservers_load {
  int epoll;
  int connections;
  uint32_t size;
  int protocol;
  size_t answer_length;
  uint64_t number;
  struct connection all[];
};

static uint64_t now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static int connect_to(uint16_t port) {
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return -errno;
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port),
                                .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  int yes = 1;
  if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0 ||
      setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes) < 0) {
    int error = errno;
    close(fd);
    return -error;
  }
  return fd;
}

struct cservers_load *cservers_open(uint16_t port, int connections, uint32_t size, int protocol,
                                    int *error) {
  struct cservers_load *load = calloc(1, sizeof *load + connections * sizeof load->all[0]);
  if (!load) abort();
  load->size = size;
  load->protocol = protocol;
  load->answer_length = protocol == cservers_redis ? strlen("+OK\r\n") : size;
  load->epoll = epoll_create1(EPOLL_CLOEXEC);
  *error = load->epoll < 0 ? errno : 0;
  while (*error == 0 && load->connections < connections) {
    int index = load->connections;
    struct connection *connection = &load->all[index];
    int fd = connect_to(port);
    if (fd < 0) {
      *error = -fd;
      break;
    }
    load->connections++;
    connection->fd = fd;
    char head[100] = "", tail[3] = "";
    if (protocol == cservers_redis) {
      snprintf(head, sizeof head, "*3\r\n$3\r\nSET\r\n$9\r\nkey:%05d\r\n$%u\r\n", index, size);
      strcpy(tail, "\r\n");
    }
    connection->request_length = strlen(head) + size + strlen(tail);
    connection->request = malloc(connection->request_length);
    connection->answer = malloc(load->answer_length);
    if (!connection->request || !connection->answer) abort();
    memcpy(connection->request, head, strlen(head));
    connection->message = connection->request + strlen(head);
    memcpy(connection->message + size, tail, strlen(tail));
    uint64_t state = 88172645463325252u + index;
    for (uint32_t at = 0; at < size; at++) {  // xorshift64
      state ^= state << 13;
      state ^= state >> 7;
      state ^= state << 17;
      connection->message[at] = (char)state;
    }
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = (uint32_t)index};
    if (epoll_ctl(load->epoll, EPOLL_CTL_ADD, fd, &event) < 0) *error = errno;
  }
  if (*error == 0) return load;
  cservers_close(load);
  return NULL;
}

void cservers_close(struct cservers_load *load) {
  for (int index = 0; index < load->connections; index++) {
    close(load->all[index].fd);
    free(load->all[index].request);
    free(load->all[index].answer);
  }
  if (load->epoll >= 0) close(load->epoll);
  free(load);
}

static int send_next(struct cservers_load *load, struct connection *connection) {
  // No two messages alike, so that an answer to another one is noticed.
  load->number++;
  memcpy(connection->message, &load->number, sizeof load->number);
  connection->answered = 0;
  connection->sent = now();
  size_t sent = 0;
  while (sent < connection->request_length) {
    ssize_t count = send(connection->fd, connection->request + sent,
                         connection->request_length - sent, MSG_NOSIGNAL);
    if (count >= 0) {
      sent += count;
    } else if (errno != EINTR) {
      return errno;
    }
  }
  return 0;
}

// Answers 1 when the answer is complete, 0 when it is not, or -errno.
static int receive(struct cservers_load *load, struct connection *connection) {
  ssize_t count = recv(connection->fd, connection->answer + connection->answered,
                       load->answer_length - connection->answered, MSG_DONTWAIT);
  if (count == 0) return -ECONNRESET;
  if (count < 0) return errno == EAGAIN || errno == EINTR ? 0 : -errno;
  connection->answered += count;
  return connection->answered == load->answer_length;
}

void cservers_run(struct cservers_load *load, uint64_t runtime, uint32_t *samples,
                  uint64_t capacity, struct cservers_result *result) {
  memset(result, 0, sizeof *result);
  uint64_t began = now(), deadline = began + runtime;
  int waiting = 0;
  for (int index = 0; index < load->connections && !result->error; index++, waiting++) {
    result->error = send_next(load, &load->all[index]);
  }
  while (waiting > 0 && !result->error) {
    struct epoll_event events[256];
    int count = epoll_wait(load->epoll, events, 256, 10000);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) {
      result->error = count < 0 ? errno : ETIMEDOUT;
      break;
    }
    for (int at = 0; at < count && !result->error; at++) {
      struct connection *connection = &load->all[events[at].data.u32];
      int answer = receive(load, connection);
      if (answer < 0) result->error = -answer;
      if (answer <= 0) continue;
      uint64_t time = now();
      const char *expected = load->protocol == cservers_redis ? "+OK\r\n" : connection->message;
      if (memcmp(connection->answer, expected, load->answer_length) != 0) result->wrong++;
      if (result->samples < capacity) {
        uint64_t latency = time - connection->sent;
        samples[result->samples++] = latency > UINT32_MAX ? UINT32_MAX : (uint32_t)latency;
      }
      result->messages++;
      if (time < deadline) {
        result->error = send_next(load, connection);
      } else {
        waiting--;
      }
    }
  }
  result->elapsed = now() - began;
}

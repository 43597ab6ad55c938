// SPDX-License-Identifier: Apache-2.0
//
// The yardstick of `aio-bench plugged`: a file server with one ring, HTTP GET with keep-alive and
// one range, on one thread. An instrument and no model of a server: what a benchmark does not ask
// for ends the connection.

#define _GNU_SOURCE
#include "CServers.h"

#include <errno.h>
#include <fcntl.h>
#include <libaio.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { page = 4096, depth = 2048, events_at_once = 256, heads = 4096 };

struct file {
  char path[256];
  int buffered;  // descriptors; -1 where it is not open
  int direct;
  int is_kept;
  off_t size;
};

struct connection {
  int socket;
  int is_busy;  // an answer is being made
  int has_ended;
  size_t received;
  char requests[heads];
  // The answer.
  struct file file;
  off_t first, last;  // the last is not included
  off_t start;        // where the buffer begins, for a direct read
  int is_partial;
  char *buffer;
  size_t capacity;
  struct iocb read;
};

static int mode, opens_each;
static const char *root;
static int sockets;  // the epoll set
static io_context_t ring;
static struct iocb *batch[depth];
static int batched;
static struct file kept[16];

static void next_request(struct connection *connection);

static void release(struct connection *connection) {
  free(connection->buffer);
  free(connection);
}

static void end(struct connection *connection) {
  if (!connection->has_ended) close(connection->socket);
  connection->has_ended = 1;
  if (!connection->is_busy) release(connection);
}

static void make_room(struct connection *connection, size_t count) {
  if (connection->capacity >= count) return;
  free(connection->buffer);
  connection->capacity = (count + page - 1) & ~(size_t)(page - 1);
  connection->buffer = aligned_alloc(page, connection->capacity);
  if (!connection->buffer) abort();
}

// MARK: Files

// Opens what the mode reads by. Answers 0, or -1.
static int open_file(struct file *file, const char *path) {
  struct stat status;
  file->buffered = file->direct = -1;
  file->is_kept = 0;
  snprintf(file->path, sizeof file->path, "%s%s", root, path);
  if (mode == cservers_ring_direct) {
    if (stat(file->path, &status) < 0) return -1;
  } else {
    file->buffered = open(file->path, O_RDONLY | O_CLOEXEC);
    if (file->buffered < 0 || fstat(file->buffered, &status) < 0) return -1;
  }
  file->size = status.st_size;
  return 0;
}

// Finds a file that is kept open, or opens it. Files in a folder are opened for each request.
static int find_file(struct file *file, const char *path) {
  if (opens_each || strchr(path + 1, '/')) return open_file(file, path);
  size_t index = 0, room = sizeof kept / sizeof kept[0], prefix = strlen(root);
  while (index < room && kept[index].path[0] && strcmp(kept[index].path + prefix, path) != 0) index++;
  if (index == room) return open_file(file, path);
  if (!kept[index].path[0]) {
    if (open_file(&kept[index], path) < 0) {
      kept[index].path[0] = 0;
      return -1;
    }
    kept[index].is_kept = 1;
    if (mode != cservers_ring_pread) {
      kept[index].direct = open(kept[index].path, O_RDONLY | O_DIRECT | O_CLOEXEC);
    }
  }
  *file = kept[index];
  return 0;
}

static void close_file(struct file *file) {
  if (file->is_kept) return;
  if (file->buffered >= 0) close(file->buffered);
  if (file->direct >= 0) close(file->direct);
}

// MARK: Answers

static int head_of(struct connection *connection, char *head) {
  long first = connection->first, last = connection->last;
  if (!connection->is_partial) {
    return sprintf(head, "HTTP/1.1 200 OK\r\nContent-Length: %ld\r\n\r\n", last - first);
  }
  return sprintf(head,
                 "HTTP/1.1 206 Partial Content\r\nContent-Length: %ld\r\n"
                 "Content-Range: bytes %ld-%ld/%ld\r\n\r\n",
                 last - first, first, last - 1, (long)connection->file.size);
}

// Waits for room in the socket, which is rare in these jobs.
static int wait_for_room(struct connection *connection) {
  struct pollfd room = {.fd = connection->socket, .events = POLLOUT};
  return errno == EAGAIN && poll(&room, 1, 10000) == 1 ? 0 : -1;
}

static void answered(struct connection *connection, int error) {
  close_file(&connection->file);
  connection->is_busy = 0;
  if (error || connection->has_ended) {
    end(connection);
  } else if (connection->received > 0) {
    next_request(connection);
  }
}

static void send_bytes(struct connection *connection, const char *bytes) {
  char head[256];
  struct iovec parts[2] = {
      {head, (size_t)head_of(connection, head)},
      {(void *)bytes, (size_t)(connection->last - connection->first)}};
  int at = 0, error = 0;
  while (at < 2 && !error) {
    ssize_t count = writev(connection->socket, parts + at, 2 - at);
    if (count < 0) {
      error = wait_for_room(connection);
      continue;
    }
    while (at < 2 && (size_t)count >= parts[at].iov_len) count -= parts[at++].iov_len;
    if (at < 2) {
      parts[at].iov_base = (char *)parts[at].iov_base + count;
      parts[at].iov_len -= count;
    }
  }
  answered(connection, error);
}

static void send_from_cache(struct connection *connection) {
  char head[256];
  size_t length = (size_t)head_of(connection, head);
  int error = send(connection->socket, head, length, MSG_MORE) == (ssize_t)length ? 0 : -1;
  off_t offset = connection->first;
  while (offset < connection->last && !error) {
    ssize_t count = sendfile(connection->socket, connection->file.buffered, &offset,
                             connection->last - offset);
    if (count == 0) error = -1;
    if (count < 0) error = wait_for_room(connection);
  }
  answered(connection, error);
}

static void not_found(struct connection *connection) {
  static const char answer[] = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
  answered(connection, write(connection->socket, answer, sizeof answer - 1) < 0);
}

// MARK: Reading

static void submit_read(struct connection *connection, int descriptor, off_t end, int flags) {
  make_room(connection, (size_t)(end - connection->start));
  io_prep_pread(&connection->read, descriptor, connection->buffer,
                (size_t)(end - connection->start), connection->start);
  connection->read.aio_rw_flags = flags;
  connection->read.data = connection;
  batch[batched++] = &connection->read;
}

static void read_direct(struct connection *connection) {
  struct file *file = &connection->file;
  if (file->direct < 0) file->direct = open(file->path, O_RDONLY | O_DIRECT | O_CLOEXEC);
  if (file->direct < 0) return answered(connection, -1);
  connection->start = connection->first & ~(off_t)(page - 1);
  submit_read(connection, file->direct, (connection->last + page - 1) & ~(off_t)(page - 1), 0);
}

// Answers the request whose range has been parsed.
static void serve(struct connection *connection, const char *path) {
  connection->is_busy = 1;
  struct file *file = &connection->file;
  file->is_kept = 1;  // nothing to close so far
  if (strstr(path, "..") || find_file(file, path) < 0) return not_found(connection);
  if (!connection->is_partial) connection->first = 0, connection->last = file->size;
  if (connection->last > file->size) connection->last = file->size;
  if (connection->first > connection->last) return answered(connection, -1);
  size_t count = (size_t)(connection->last - connection->first);
  connection->start = connection->first;
  if (mode == cservers_ring_direct) return read_direct(connection);
  if (mode == cservers_ring_buffered) {
    return submit_read(connection, file->buffered, connection->last, RWF_NOWAIT);
  }
  make_room(connection, count);
  if (mode == cservers_ring_sendfile) {
    // One byte tells whether it is cached, in these jobs.
    struct iovec last = {connection->buffer, 1};
    ssize_t answer = preadv2(file->buffered, &last, 1, connection->last - 1, RWF_NOWAIT);
    return answer == 1 ? send_from_cache(connection) : read_direct(connection);
  }
  struct iovec all = {connection->buffer, count};
  ssize_t answer = preadv2(file->buffered, &all, 1, connection->first,
                           mode == cservers_ring_pread ? 0 : RWF_NOWAIT);
  if (answer == (ssize_t)count) return send_bytes(connection, connection->buffer);
  if (mode == cservers_ring_pread) return answered(connection, -1);
  read_direct(connection);
}

static void read_completed(struct connection *connection, long result) {
  off_t last = connection->last - connection->start;
  if (connection->has_ended) return answered(connection, -1);
  if (result >= last) {
    return send_bytes(connection, connection->buffer + (connection->first - connection->start));
  }
  // Refused, or in part: from the disk. A direct read has no flags.
  if (connection->read.aio_rw_flags) return read_direct(connection);
  answered(connection, -1);
}

// MARK: Sockets

static void next_request(struct connection *connection) {
  if (connection->is_busy) return;
  char *begin = connection->requests;
  char *blank = memmem(begin, connection->received, "\r\n\r\n", 4);
  if (!blank) {
    if (connection->received == heads) end(connection);
    return;
  }
  size_t used = (size_t)(blank + 4 - begin);
  char *path = memchr(begin, ' ', used);
  char *after = path ? memchr(path + 1, ' ', used - (size_t)(path + 1 - begin)) : NULL;
  char name[200];
  if (!after || (size_t)(after - path - 1) >= sizeof name) return end(connection);
  memcpy(name, path + 1, (size_t)(after - path - 1));
  name[after - path - 1] = 0;
  char *range = memmem(begin, used, "Range: bytes=", 13);
  connection->is_partial = range != NULL;
  if (range) {
    connection->first = strtol(range + 13, &range, 10);
    connection->last = strtol(range + 1, NULL, 10) + 1;
  }
  connection->received -= used;
  memmove(begin, blank + 4, connection->received);
  serve(connection, name);
}

static void readable(struct connection *connection) {
  ssize_t count = read(connection->socket, connection->requests + connection->received,
                       heads - connection->received);
  if (count > 0) {
    connection->received += (size_t)count;
    next_request(connection);
  } else if (count == 0 || errno != EAGAIN) {
    end(connection);
  }
}

static void accept_all(int listener) {
  int socket;
  while ((socket = cservers_accept(listener)) >= 0) {
    struct connection *connection = calloc(1, sizeof *connection);
    if (!connection) abort();
    connection->socket = socket;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = connection};
    if (epoll_ctl(sockets, EPOLL_CTL_ADD, socket, &event) < 0) end(connection);
  }
}

// Handles what is ready, and answers how much that was.
static int handle_sockets(int listener, int timeout) {
  struct epoll_event events[events_at_once];
  int count = epoll_wait(sockets, events, events_at_once, timeout);
  for (int index = 0; index < count; index++) {
    struct connection *connection = events[index].data.ptr;
    if (connection) readable(connection);
    else accept_all(listener);
  }
  return count;
}

// One turn with the ring: submits all that the last one made, and waits for sockets and disk at
// once.
static int turn(int listener) {
  static struct iocb poll_sockets;
  static int is_armed;
  if (!is_armed) {
    io_prep_poll(&poll_sockets, sockets, POLLIN);
    batch[batched++] = &poll_sockets;
    is_armed = 1;
  }
  for (int at = 0; at < batched;) {
    int count = io_submit(ring, batched - at, batch + at);
    if (count < 0) return -count;
    at += count;
  }
  batched = 0;
  struct io_event events[events_at_once];
  int count = io_getevents(ring, 1, events_at_once, events, NULL);
  if (count < 0 && count != -EINTR) return -count;
  for (int index = 0; index < count; index++) {
    if (events[index].obj == &poll_sockets) is_armed = 0;
    else read_completed(events[index].data, (long)events[index].res);
  }
  if (!is_armed) handle_sockets(listener, 0);
  return 0;
}

int cservers_ring(int the_mode, const char *directory, int opens_each_time) {
  mode = the_mode;
  root = directory;
  opens_each = opens_each_time;
  signal(SIGPIPE, SIG_IGN);
  int listener = cservers_listen();
  if (listener < 0) return -listener;
  sockets = epoll_create1(EPOLL_CLOEXEC);
  struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
  if (sockets < 0 || epoll_ctl(sockets, EPOLL_CTL_ADD, listener, &event) < 0) return errno;
  int error = mode == cservers_ring_pread ? 0 : io_setup(depth, &ring);
  if (error < 0) return -error;
  printf("listening on 127.0.0.1:%d\n", cservers_port(listener));
  fflush(stdout);
  if (mode == cservers_ring_pread) {
    while (handle_sockets(listener, -1) >= 0 || errno == EINTR) {}
    return errno;
  }
  while (!(error = turn(listener))) {}
  return error;
}

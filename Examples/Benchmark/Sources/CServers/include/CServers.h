// SPDX-License-Identifier: Apache-2.0
//
// For `aio-bench serve`: a plain server to compare with, and the load, which is the same program
// for every server. For `aio-bench plugged`: a file server in C with one ring.

#ifndef CSERVERS_H
#define CSERVERS_H

#include <stdint.h>

// Connections that each send a message, wait for the whole answer, and send the next. All on the
// calling thread, over one epoll set.
struct cservers_load;

enum { cservers_echo = 0, cservers_redis = 1 };

// Connects to 127.0.0.1. An echo server answers each message with the same bytes; Redis gets
// `SET key message`, and answers +OK.
//
// Answers NULL, and `error` is the errno, when that failed.
struct cservers_load *cservers_open(uint16_t port, int connections, uint32_t size, int protocol,
                                    int *error);

struct cservers_result {
  uint64_t messages;
  uint64_t samples;
  uint64_t elapsed;  // nanoseconds
  uint64_t wrong;    // answers that were not what they had to be
  int error;         // an errno, or 0
};

// Sends for so many nanoseconds, and waits for the last answers. `samples` gets the latencies, in
// nanoseconds; more than `capacity` of them are not kept.
void cservers_run(struct cservers_load *load, uint64_t runtime, uint32_t *samples,
                  uint64_t capacity, struct cservers_result *result);

void cservers_close(struct cservers_load *load);

// A thread per connection, and nothing clever: a message is received whole, written with O_DIRECT
// to the next place of a file that is zeros already, made durable by fdatasync, and sent back. At
// the file's end it begins anew, so that it never has to make room.
//
// Prints "listening on 127.0.0.1:PORT" when it is ready; does not return, but for an errno when
// something fails.
int cservers_serve(const char *path, uint64_t file_size, uint32_t message_size);

// Sockets of a file server: one that listens on a free port of the loopback, its port, and a
// connection of it. All are non-blocking. They answer -errno when that fails.
int cservers_listen(void);
int cservers_port(int listener);
int cservers_accept(int listener);

// How a file server with one ring reads: all but the first have the sockets in an epoll set that
// one IOCB_CMD_POLL watches, beside the files.
enum {
  cservers_ring_pread = 0,     // sockets by epoll_wait, files by pread(2) where the request is handled
  cservers_ring_direct = 1,    // O_DIRECT
  cservers_ring_buffered = 2,  // through the page cache by RWF_NOWAIT, what that refuses by O_DIRECT
  cservers_ring_auto = 3,      // as buffered, but the page cache is asked by preadv2 in place
  cservers_ring_sendfile = 4,  // as auto, and what is cached goes out by sendfile(2)
};

// Serves the files of a directory over HTTP. Files at its top are kept open, unless they are to be
// opened for each request, as those in its folders always are.
//
// Prints "listening on 127.0.0.1:PORT" when it is ready; does not return, but for an errno when
// something fails.
int cservers_ring(int mode, const char *directory, int opens_each_time);

#endif

// SPDX-License-Identifier: Apache-2.0
//
// The socket calls that Swift's Glibc overlay hides.

#ifndef CSOCKETS_H
#define CSOCKETS_H

#include <stdint.h>
#include <sys/epoll.h>
#include <sys/socket.h>

// accept4(2), non-blocking and close-on-exec. Answers the descriptor, or -errno.
int csockets_accept(int fd, struct sockaddr_storage *address, socklen_t *length);

// socket(2), non-blocking and close-on-exec. Answers the descriptor, or -errno.
int csockets_stream_socket(int family);

// A new eventfd(2) counter of 0, non-blocking and close-on-exec. Answers the descriptor, or -errno.
int csockets_eventfd(void);

// A new timerfd(2), non-blocking and close-on-exec. Answers the descriptor, or -errno.
int csockets_timer(void);

// timerfd_settime(2): ticks once, in so many nanoseconds; 0: not any more. (A timer that repeats
// does so when it is read: this saves that.)
int csockets_tick(int timer, int64_t nanoseconds);

// clock_gettime(CLOCK_MONOTONIC), in nanoseconds.
int64_t csockets_nanoseconds(void);

#endif

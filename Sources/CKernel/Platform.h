// SPDX-License-Identifier: Apache-2.0
//
// What Posix.c needs of the platform's own file.

#ifndef CKERNEL_PLATFORM_H
#define CKERNEL_PLATFORM_H

#include <signal.h>
#include <stdint.h>

// sendfile(2), once: a count or -errno. May raise SIGPIPE.
int64_t platform_sendfile(int socket, int fd, int64_t offset, uint64_t count);

// Takes back a signal that the thread masks, if it is pending: `only` is the set of it.
void platform_take_signal(const sigset_t *only, int number);

// What mincore(2) fills.
#ifdef __APPLE__
typedef char platform_page;
#else
typedef unsigned char platform_page;
#endif

#endif

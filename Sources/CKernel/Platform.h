// SPDX-License-Identifier: Apache-2.0
//
// What Posix.c and the platform's own file need of each other.

#ifndef CKERNEL_PLATFORM_H
#define CKERNEL_PLATFORM_H

#include <signal.h>
#include <stdint.h>

#include "CKernel.h"

// Opens the file of a descriptor once more, by the path that names it: a descriptor or -errno.
int ckernel_platform_reopen(int fd, int flags);

// The same, with those of the descriptor's flags that are `kept`. -ESTALE if the path leads to
// something else.
int ckernel_reopen(int fd, int mode, int kept);

// What fstat(2) says of an open file.
int ckernel_status_by_fstat(int fd, struct ckernel_status *status);

// sendfile(2), once: a count or -errno. May raise SIGPIPE.
int64_t ckernel_platform_sendfile(int socket, int fd, int64_t offset, uint64_t count);

// Takes back a signal that the thread masks, if it is pending: `only` is the set of it.
void ckernel_platform_take_signal(const sigset_t *only, int number);

// What mincore(2) fills.
#ifdef __APPLE__
typedef char ckernel_platform_page;
#else
typedef unsigned char ckernel_platform_page;
#endif

#endif

// SPDX-License-Identifier: Apache-2.0
//
// The calls of a file server that Swift's Glibc overlay hides. Each answers as the kernel does: 0
// or more on success, -errno on failure.

#ifndef CSERVEDFILES_H
#define CSERVEDFILES_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

// What fstat(2) says of a file, as far as a server needs it.
struct cserved_status {
  int64_t size;
  int64_t modified_seconds;
  int64_t changed_seconds, changed_nanoseconds;
  uint64_t links;
  uint32_t type; // S_IFMT of st_mode
};

// openat2(2) of a directory that must stay beneath another, whatever symbolic links and `..` are in
// the path, and without the links of /proc; as a place only (O_PATH).
int cserved_open_place(int directory, const char *path);

// Opens what a descriptor of O_PATH stands for.
int cserved_reopen(int place, int flags);

int cserved_status(int fd, struct cserved_status *status);

// fstatat(2) without following a symbolic link.
int cserved_status_at(int directory, const char *name, struct cserved_status *status);

// What a path leads to, which must stay beneath the directory as for cserved_open_place.
int cserved_status_beneath(int directory, const char *path, struct cserved_status *status);

// preadv2(2) with RWF_NOWAIT: what is in the page cache, or -EAGAIN.
int64_t cserved_read_cached(int fd, void *memory, size_t count, int64_t offset);

// sendmsg(2) of two pieces, or send(2) of one, with MSG_NOSIGNAL, and with MSG_MORE where more
// follows at once.
int64_t cserved_send(
    int socket, const void *first, size_t first_count, const void *second, size_t second_count,
    int has_more);

// clock_gettime of the monotonic clock, as of the last tick (some milliseconds), in nanoseconds.
uint64_t cserved_coarse_nanoseconds(void);

#endif

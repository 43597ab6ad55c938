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
struct cfiles_status {
  int64_t size;
  int64_t modified_seconds, modified_nanoseconds;
  int64_t changed_seconds, changed_nanoseconds;
  uint64_t inode, device, links;
  uint32_t type; // S_IFMT of st_mode
};

// openat2(2) of a directory that must stay beneath another, whatever symbolic links and `..` are in
// the path, and without the links of /proc; as a place only (O_PATH).
int cfiles_open_place(int directory, const char *path);

// Opens what a descriptor of O_PATH stands for.
int cfiles_reopen(int place, int flags);

int cfiles_status(int fd, struct cfiles_status *status);

// fstatat(2) without following a symbolic link.
int cfiles_status_at(int directory, const char *name, struct cfiles_status *status);

// preadv2(2) with RWF_NOWAIT: what is in the page cache, or -EAGAIN.
int64_t cfiles_read_cached(int fd, void *memory, size_t count, int64_t offset);

// sendmsg(2) of two pieces, or send(2) of one, with MSG_NOSIGNAL, and with MSG_MORE where more
// follows at once.
int64_t cfiles_send(
    int socket, const void *first, size_t first_count, const void *second, size_t second_count,
    int has_more);

// openat(2): a new file to write to; -EEXIST if there is one.
int cfiles_create(int directory, const char *name);

// renameat2(2) within a directory; exclusive: -EEXIST if the new name is there.
int cfiles_rename(int directory, const char *from, const char *to, int is_exclusive);

int cfiles_unlink(int directory, const char *name);

// Makes what changed in a directory durable, named by a descriptor of O_PATH.
int cfiles_sync_directory(int place);

// clock_gettime of the monotonic clock, as of the last tick (some milliseconds), in nanoseconds.
uint64_t cfiles_coarse_nanoseconds(void);

#endif

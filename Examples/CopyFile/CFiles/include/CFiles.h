// SPDX-License-Identifier: Apache-2.0
//
// The file calls that Swift's Glibc overlay hides. Each answers as the kernel does: 0 or more on
// success, -errno on failure.

#ifndef CFILES_H
#define CFILES_H

#include <stdbool.h>
#include <stddef.h>

// open(2) of a new file without a name in `directory` (O_TMPFILE), to read and write, 0600,
// close-on-exec; without a name it is gone when its last descriptor is.
int cfiles_open_unnamed(const char *directory, bool is_direct);

// linkat(2): gives a file without a name one, which must not exist. Needs /proc.
int cfiles_link(int fd, const char *path);

// Whether files in `directory` can only be added (chattr +a); false if that cannot be known.
bool cfiles_is_append_only(const char *directory);

// Clears O_DIRECT.
int cfiles_make_buffered(int fd);

// flistxattr(2), fgetxattr(2), fsetxattr(2) and fremovexattr(2).
long cfiles_list_attributes(int fd, char *names, size_t size);
long cfiles_get_attribute(int fd, const char *name, void *value, size_t size);
int cfiles_set_attribute(int fd, const char *name, const void *value, size_t size);
int cfiles_remove_attribute(int fd, const char *name);

#endif

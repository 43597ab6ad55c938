// SPDX-License-Identifier: Apache-2.0
//
// What the file systems of this folder have in common: the kernel's protocol (linux/fuse.h) is
// spoken over /dev/fuse, without libfuse.

#ifndef FUSE_CHANNEL_H
#define FUSE_CHANNEL_H

#include <linux/fuse.h>
#include <stddef.h>

#define FUSE_MAX_TRANSFER (1u << 20)
#define FUSE_BUFFER_SIZE (FUSE_MAX_TRANSFER + 65536)

// Mounts /dev/fuse and says "mounted", or what failed, on standard output.
//
// Returns the channel, which does not block; a negative errno if that failed.
int fuse_channel_open(const char *name, const char *mountpoint);

// Unmounts lazily: files may be open. What still waits ends with an error.
void fuse_channel_close(int channel, const char *mountpoint);

// Answers a request. Fails only where the kernel no longer waits for the answer: ENOENT, the caller
// was killed.
void fuse_answer(
    int channel, const struct fuse_in_header *in, int error, const void *body, size_t length);

// Answers FUSE_INIT.
void fuse_answer_init(
    int channel, const struct fuse_in_header *in, const struct fuse_init_in *asked);

// Answers FUSE_STATFS.
void fuse_answer_statfs(int channel, const struct fuse_in_header *in);

// Answers FUSE_READDIR: a directory lists nothing but itself. (Whoever removes the mount point's
// parent may look.)
void fuse_answer_readdir(
    int channel, const struct fuse_in_header *in, const struct fuse_read_in *asked);

#endif

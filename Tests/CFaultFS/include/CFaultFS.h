// SPDX-License-Identifier: Apache-2.0

#ifndef CFAULTFS_H
#define CFAULTFS_H

// Mounts a file system whose files misbehave at `mountpoint`, says "mounted" on standard output,
// and serves it. Standard input rules it: 'r' opens the gate, after which nothing hangs any more;
// 'q' or its end (the parent has died, too) unmounts it and returns. Needs root and /dev/fuse.
//
// Returns 0, or the errno of what failed, after a line about it on standard output.
int cfaultfs_run(const char *mountpoint);

// Mounts a file system at `mountpoint` with a disk whose every write is logged, and from which the
// power can be cut (CPowerCut.c), says "mounted" on standard output, and serves it until standard
// input ends. The disk begins as the file `contents`, which has to stay as it is, and does. What is
// mounted at `mounted` by then, the filesystem on the disk, is unmounted. Needs root and /dev/fuse.
//
// Returns 0, or the errno of what failed, after a line about it on standard output.
int cpowercut_run(const char *mountpoint, const char *contents, const char *mounted);

#endif

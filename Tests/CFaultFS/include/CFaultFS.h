// SPDX-License-Identifier: Apache-2.0

#ifndef CFAULTFS_H
#define CFAULTFS_H

// Mounts a file system whose files misbehave at `mountpoint`, says "mounted" on standard output,
// and serves it. Standard input rules it: 'r' opens the gate, after which nothing hangs any more;
// 'q' or its end (the parent has died, too) unmounts it and returns. Needs root and /dev/fuse.
//
// Returns 0, or the errno of what failed, after a line about it on standard output.
int cfaultfs_run(const char *mountpoint);

#endif

// SPDX-License-Identifier: Apache-2.0
//
// The file call that Swift's Glibc overlay hides.

#ifndef CJOURNAL_H
#define CJOURNAL_H

// Renames a file of a directory, unless the new name is taken: -EEXIST then. Where the file system
// does not know RENAME_NOREPLACE, by link(2) and unlink(2), which replace nothing either. Returns
// 0, or -errno.
int cjournal_rename_new(int directory, const char *from, const char *to);

#endif

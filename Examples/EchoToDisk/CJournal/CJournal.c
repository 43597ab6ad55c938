// SPDX-License-Identifier: Apache-2.0

#define _GNU_SOURCE
#include "CJournal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

int cjournal_rename_new(int directory, const char *from, const char *to) {
  if (renameat2(directory, from, directory, to, RENAME_NOREPLACE) == 0) return 0;
  if (errno != EINVAL && errno != ENOSYS) return -errno;
  if (linkat(directory, from, directory, to, 0) != 0) return -errno;
  return unlinkat(directory, from, 0) == 0 ? 0 : -errno;
}

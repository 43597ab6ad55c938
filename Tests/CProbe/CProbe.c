// SPDX-License-Identifier: Apache-2.0

#define _GNU_SOURCE
#include "CProbe.h"

#include <grp.h>
#include <unistd.h>

int cprobe_fork(void) { return fork(); }

void cprobe_become_nobody(void) {
  setgroups(0, 0);
  if (setresgid(65534, 65534, 65534) != 0 || setresuid(65534, 65534, 65534) != 0) _exit(3);
}

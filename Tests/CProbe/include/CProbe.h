// SPDX-License-Identifier: Apache-2.0

#ifndef CPROBE_H
#define CPROBE_H

// fork(2), which Swift does not let one call.
int cprobe_fork(void);

// Makes this process an ordinary user's, for good.
void cprobe_become_nobody(void);

// Takes /proc away, for this process alone. Needs root.
int cprobe_hide_proc(void);

#endif

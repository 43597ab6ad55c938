// SPDX-License-Identifier: Apache-2.0
//
// Counting instructions by valgrind's callgrind, where the program runs under it.

#include "CEngines.h"

#if __has_include(<valgrind/callgrind.h>)
#include <valgrind/callgrind.h>

int cengines_counts_instructions(void) { return RUNNING_ON_VALGRIND != 0; }

void cengines_drop_instructions(void) { CALLGRIND_ZERO_STATS; }

void cengines_note_instructions(const char *name) { CALLGRIND_DUMP_STATS_AT(name); }

#else

int cengines_counts_instructions(void) { return 0; }
void cengines_drop_instructions(void) {}
void cengines_note_instructions(const char *name) { (void)name; }

#endif

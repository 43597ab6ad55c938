// SPDX-License-Identifier: Apache-2.0
//
// The engines in C: the limit (a plain loop over libaio, batching), and the way of the C original
// (a system call for each request, an eventfd, poll and read). With them the calls that Swift
// lacks.

#ifndef CENGINES_H
#define CENGINES_H

#include <stdint.h>

struct cengines_job {
  int fd;
  int depth;
  int is_write;
  int is_random;
  int is_append;
  int fdatasync_every;  // 0: never
  int verify;
  int batches;          // 1: one io_submit for all ready requests, and no eventfd
  uint64_t block;       // bytes
  uint64_t blocks;      // in the file
  uint64_t runtime;     // nanoseconds
  uint64_t seed;
  uint32_t *samples;    // latencies in nanoseconds
  uint64_t samples_capacity;
};

struct cengines_result {
  uint64_t requests;
  uint64_t samples;
  uint64_t elapsed;         // nanoseconds
  uint64_t longest_submit;  // nanoseconds
  uint64_t wrong;           // blocks that were not what had been written
  int error;                // an errno, or 0
};

// Runs the job. `progress` counts the requests meanwhile, for another thread to read.
void cengines_run(const struct cengines_job *job, struct cengines_result *result,
                  volatile uint64_t *progress);

// Appends 4 KiB at a time to an empty file, one in flight, each made by a worker, with an fdatasync
// always in flight, for so many nanoseconds. Returns 0 or an errno.
int cengines_append_offloaded(int fd, uint64_t runtime, uint64_t *appends);

// Fills a block with numbers made of its offset, one at the beginning of each 512 bytes.
void cengines_stamp(void *block, uint64_t length, uint64_t offset);

// Checks such a block. Returns 1 if it is as it was stamped, else 0.
int cengines_check(const void *block, uint64_t length, uint64_t offset);

uint64_t cengines_now(void);  // CLOCK_MONOTONIC, nanoseconds

// open(2), with O_DIRECT if asked. Returns -errno on failure.
int cengines_open(const char *path, int is_direct, int is_write, int truncates);

// Heap allocations of the whole process since the start.
uint64_t cengines_allocations(void);

// Starts to count the system calls of all threads of the process. Returns 0, or -errno where that
// is not allowed. Counting slows each call down, so it is not for runs that are timed.
int cengines_start_counting(void);

// Stops counting, and returns the number of calls.
uint64_t cengines_stop_counting(void);

// Whether the process runs under callgrind, and was built where valgrind's headers are.
int cengines_counts_instructions(void);

// Forgets the instructions so far, of all threads.
void cengines_drop_instructions(void);

// Makes callgrind write the instructions since then into its next file, under a name.
void cengines_note_instructions(const char *name);

#endif

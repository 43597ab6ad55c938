// SPDX-License-Identifier: Apache-2.0
//
// Counting the system calls of this process, by a perf event on the tracepoint of each thread.

#define _GNU_SOURCE
#include "CEngines.h"

#include <dirent.h>
#include <errno.h>
#include <linux/perf_event.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { most_counters = 256 };
static int counters[most_counters];
static int counter_count;

int cengines_start_counting(void) {
  FILE *file = fopen("/sys/kernel/tracing/events/raw_syscalls/sys_enter/id", "r");
  if (!file) file = fopen("/sys/kernel/debug/tracing/events/raw_syscalls/sys_enter/id", "r");
  if (!file) return -errno;
  unsigned long long id = 0;
  int found = fscanf(file, "%llu", &id);
  fclose(file);
  if (found != 1) return -EINVAL;
  struct perf_event_attr attributes = {
      .type = PERF_TYPE_TRACEPOINT, .size = sizeof attributes, .config = id, .inherit = 1};
  // One for each thread, which the threads that it creates inherit.
  DIR *threads = opendir("/proc/self/task");
  if (!threads) return -errno;
  counter_count = 0;
  struct dirent *entry;
  int failure = 0;
  while ((entry = readdir(threads)) && counter_count < most_counters) {
    int thread = atoi(entry->d_name);
    if (thread <= 0) continue;
    int fd = (int)syscall(SYS_perf_event_open, &attributes, thread, -1, -1, PERF_FLAG_FD_CLOEXEC);
    if (fd >= 0) {
      counters[counter_count++] = fd;
    } else {
      failure = -errno;
    }
  }
  closedir(threads);
  return counter_count > 0 ? 0 : failure;
}

uint64_t cengines_stop_counting(void) {
  uint64_t sum = 0;
  for (int i = 0; i < counter_count; i++) {
    uint64_t count = 0;
    if (read(counters[i], &count, sizeof count) == sizeof count) sum += count;
    close(counters[i]);
  }
  counter_count = 0;
  return sum;
}

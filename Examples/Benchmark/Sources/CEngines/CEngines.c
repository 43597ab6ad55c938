// SPDX-License-Identifier: Apache-2.0

#define _GNU_SOURCE
#include "CEngines.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <libaio.h>
#include <linux/perf_event.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

uint64_t cengines_now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

void cengines_stamp(void *block, uint64_t length, uint64_t offset) {
  for (uint64_t at = 0; at < length; at += 512) {
    uint64_t number = (offset + at) * 0x9e3779b97f4a7c15;
    memcpy((char *)block + at, &number, sizeof number);
  }
}

int cengines_check(const void *block, uint64_t length, uint64_t offset) {
  for (uint64_t at = 0; at < length; at += 512) {
    uint64_t number = (offset + at) * 0x9e3779b97f4a7c15;
    if (memcmp((const char *)block + at, &number, sizeof number) != 0) return 0;
  }
  return 1;
}

int cengines_open(const char *path, int is_direct, int is_write, int truncates) {
  int flags = (is_write ? O_RDWR | O_CREAT : O_RDONLY) | O_CLOEXEC;
  if (is_direct) flags |= O_DIRECT;
  if (truncates) flags |= O_TRUNC;
  int fd = open(path, flags, 0644);
  return fd < 0 ? -errno : fd;
}

// The engines

struct request {
  struct iocb block;  // first: a completion's iocb is its request
  char *memory;
  uint64_t offset;
  uint64_t started;
  int is_sync;
};

struct run {
  const struct cengines_job *job;
  struct cengines_result *result;
  volatile uint64_t *progress;
  io_context_t context;
  int event;
  uint64_t state, next, deadline;
  struct request sync;
  int sync_in_flight;
};

static uint64_t next_offset(struct run *run) {
  const struct cengines_job *job = run->job;
  if (job->is_append) return run->next++ * job->block;
  if (!job->is_random) return run->next++ % job->blocks * job->block;
  run->state ^= run->state << 13;
  run->state ^= run->state >> 7;
  run->state ^= run->state << 17;
  return run->state % job->blocks * job->block;
}

static void prepare(struct run *run, struct request *request, uint64_t now) {
  const struct cengines_job *job = run->job;
  request->offset = next_offset(run);
  request->started = now;
  if (job->is_write) {
    if (job->verify) cengines_stamp(request->memory, job->block, request->offset);
    io_prep_pwrite(&request->block, job->fd, request->memory, job->block, request->offset);
  } else {
    io_prep_pread(&request->block, job->fd, request->memory, job->block, request->offset);
  }
  if (!job->batches) io_set_eventfd(&request->block, run->event);
}

// Submits all of them; gives up on an error.
static int submit(struct run *run, struct iocb **blocks, int count) {
  uint64_t began = cengines_now();
  while (count > 0) {
    int taken = io_submit(run->context, count, blocks);
    if (taken == -EINTR || taken == -EAGAIN) continue;
    if (taken < 0) return -taken;
    blocks += taken;
    count -= taken;
  }
  uint64_t took = cengines_now() - began;
  if (took > run->result->longest_submit) run->result->longest_submit = took;
  return 0;
}

// Takes note of a completion; answers whether the request goes again.
static int completed(struct run *run, struct request *request, long answer, uint64_t now) {
  const struct cengines_job *job = run->job;
  struct cengines_result *result = run->result;
  if (request->is_sync) {
    run->sync_in_flight = 0;
    if (answer < 0) result->error = (int)-answer;
    return 0;
  }
  if (answer != (long)job->block) {
    result->error = answer < 0 ? (int)-answer : EIO;
    return 0;
  }
  if (job->verify && !job->is_write &&
      !cengines_check(request->memory, job->block, request->offset)) {
    result->wrong++;
  }
  if (result->samples < job->samples_capacity) {
    uint64_t latency = now - request->started;
    job->samples[result->samples++] = latency > UINT32_MAX ? UINT32_MAX : (uint32_t)latency;
  }
  *run->progress = ++result->requests;
  return now < run->deadline && result->error == 0;
}

void cengines_run(const struct cengines_job *job, struct cengines_result *result,
                  volatile uint64_t *progress) {
  memset(result, 0, sizeof *result);
  struct run run = {.job = job, .result = result, .progress = progress, .event = -1,
                    .state = job->seed | 1};
  run.sync.is_sync = 1;
  int answer = io_setup(job->depth + 1, &run.context);
  if (answer < 0) {
    result->error = -answer;
    return;
  }
  if (!job->batches) run.event = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  struct request *requests = calloc(job->depth, sizeof *requests);
  struct iocb **blocks = calloc(job->depth + 1, sizeof *blocks);
  struct io_event *events = calloc(job->depth + 1, sizeof *events);

  uint64_t began = cengines_now();
  run.deadline = began + job->runtime;
  int count = 0;
  for (int i = 0; i < job->depth; i++) {
    if (posix_memalign((void **)&requests[i].memory, 4096, job->block) != 0) abort();
    memset(requests[i].memory, 0x55, job->block);
    prepare(&run, &requests[i], began);
    blocks[count++] = &requests[i].block;
  }
  int in_flight = 0;
  uint64_t written = 0;
  while (count > 0 || in_flight > 0 || run.sync_in_flight) {
    int to_submit = count;
    count = 0;
    if (job->batches) {
      result->error = to_submit ? submit(&run, blocks, to_submit) : result->error;
      if (result->error) break;
    } else {
      for (int i = 0; i < to_submit; i++) {
        if ((result->error = submit(&run, &blocks[i], 1))) break;
      }
      if (result->error) break;
    }
    in_flight += to_submit;
    int got;
    if (job->batches) {
      got = io_getevents(run.context, 1, job->depth + 1, events, NULL);
    } else {
      struct pollfd poll_event = {.fd = run.event, .events = POLLIN};
      poll(&poll_event, 1, -1);
      uint64_t counted;
      if (read(run.event, &counted, sizeof counted) < 0 && errno != EAGAIN) abort();
      struct timespec none = {0, 0};
      got = io_getevents(run.context, 0, job->depth + 1, events, &none);
    }
    if (got < 0) {
      if (got == -EINTR) continue;
      result->error = -got;
      break;
    }
    for (int i = 0; i < got; i++) {
      // For each, as the other engines do, to whom completions come one by one.
      uint64_t now = cengines_now();
      struct request *request = (struct request *)events[i].obj;
      int is_sync = request->is_sync;
      if (!is_sync) in_flight--;
      if (completed(&run, request, (long)events[i].res, now)) {
        prepare(&run, request, now);
        blocks[count++] = &request->block;
      }
      if (!is_sync && job->fdatasync_every && ++written >= (uint64_t)job->fdatasync_every &&
          !run.sync_in_flight && now < run.deadline) {
        written = 0;
        run.sync_in_flight = 1;
        io_prep_fdsync(&run.sync.block, job->fd);
        if (!job->batches) io_set_eventfd(&run.sync.block, run.event);
        struct iocb *block = &run.sync.block;
        if ((result->error = submit(&run, &block, 1))) break;
      }
    }
    if (result->error) break;
  }
  result->elapsed = cengines_now() - began;
  io_destroy(run.context);
  if (run.event >= 0) close(run.event);
  for (int i = 0; i < job->depth; i++) free(requests[i].memory);
  free(requests);
  free(blocks);
  free(events);
}

// Counting

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
  // Each thread there is, and those it will make.
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

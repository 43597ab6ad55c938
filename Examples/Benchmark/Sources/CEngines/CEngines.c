// SPDX-License-Identifier: Apache-2.0
//
// The two loops in C, and the small calls that the engines in Swift share with them.

#define _GNU_SOURCE
#include "CEngines.h"

#include <errno.h>
#include <fcntl.h>
#include <libaio.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
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

// A request in flight, reused for the next when it has completed.
struct request {
  struct iocb block;  // first: a completion's iocb is its request
  char *memory;
  uint64_t offset;
  uint64_t started;
  int is_sync;
};

// One run of a job.
struct run {
  const struct cengines_job *job;
  struct cengines_result *result;
  volatile uint64_t *progress;
  io_context_t context;
  int event;
  uint64_t state, next, deadline;
  int in_flight;
  // Writes since the last fdatasync.
  uint64_t written;
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

// Submits all of them, unless there is an error, which it returns.
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

// Notes a completion, and returns whether another request is to follow.
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

// Submits the requests that are ready: all in one call, or one by one in the way of the C original.
static int submit_ready(struct run *run, struct iocb **blocks, int count) {
  if (run->job->batches) return count > 0 ? submit(run, blocks, count) : run->result->error;
  for (int i = 0; i < count; i++) {
    int error = submit(run, &blocks[i], 1);
    if (error) return error;
  }
  return 0;
}

// Waits for completions: in io_getevents, or for the eventfd in the way of the C original.
static int wait_for_events(struct run *run, struct io_event *events) {
  int most = run->job->depth + 1;
  if (run->job->batches) return io_getevents(run->context, 1, most, events, NULL);
  struct pollfd poll_event = {.fd = run->event, .events = POLLIN};
  poll(&poll_event, 1, -1);
  uint64_t counted;
  if (read(run->event, &counted, sizeof counted) < 0 && errno != EAGAIN) abort();
  struct timespec none = {0, 0};
  return io_getevents(run->context, 0, most, events, &none);
}

// Submits an fdatasync, if it is time for one and none is in flight.
static int sync_if_due(struct run *run, uint64_t now) {
  const struct cengines_job *job = run->job;
  if (!job->fdatasync_every || ++run->written < (uint64_t)job->fdatasync_every ||
      run->sync_in_flight || now >= run->deadline) {
    return 0;
  }
  run->written = 0;
  run->sync_in_flight = 1;
  io_prep_fdsync(&run->sync.block, job->fd);
  if (!job->batches) io_set_eventfd(&run->sync.block, run->event);
  struct iocb *block = &run->sync.block;
  return submit(run, &block, 1);
}

// Handles completions: each is noted, and its request is prepared anew while there is time.
// Adds the requests to submit to `blocks`, and returns their number.
static int handle_events(struct run *run, struct io_event *events, int count,
                         struct iocb **blocks) {
  int ready = 0;
  for (int i = 0; i < count; i++) {
    // The clock for each, as in the other engines, which get completions one by one.
    uint64_t now = cengines_now();
    struct request *request = (struct request *)events[i].obj;
    int is_sync = request->is_sync;
    if (!is_sync) run->in_flight--;
    if (completed(run, request, (long)events[i].res, now)) {
      prepare(run, request, now);
      blocks[ready++] = &request->block;
    }
    if (!is_sync) {
      int error = sync_if_due(run, now);
      if (error) {
        run->result->error = error;
        break;
      }
    }
  }
  return ready;
}

// The loop: submit, wait, handle, until the time is over and nothing is in flight.
static void loop(struct run *run, struct iocb **blocks, int ready, struct io_event *events) {
  struct cengines_result *result = run->result;
  while (ready > 0 || run->in_flight > 0 || run->sync_in_flight) {
    result->error = submit_ready(run, blocks, ready);
    if (result->error) return;
    run->in_flight += ready;
    ready = 0;
    int got = wait_for_events(run, events);
    if (got == -EINTR) continue;
    if (got < 0) {
      result->error = -got;
      return;
    }
    ready = handle_events(run, events, got, blocks);
    if (result->error) return;
  }
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
  for (int i = 0; i < job->depth; i++) {
    if (posix_memalign((void **)&requests[i].memory, 4096, job->block) != 0) abort();
    memset(requests[i].memory, 0x55, job->block);
    prepare(&run, &requests[i], began);
    blocks[i] = &requests[i].block;
  }
  loop(&run, blocks, job->depth, events);
  result->elapsed = cengines_now() - began;
  io_destroy(run.context);
  if (run.event >= 0) close(run.event);
  for (int i = 0; i < job->depth; i++) free(requests[i].memory);
  free(requests);
  free(blocks);
  free(events);
}

// SPDX-License-Identifier: Apache-2.0
//
// The least that an append costs which a worker makes: the loop hands it over by a futex, the
// worker makes the pwritev2, and hands the result back by a request of the ring of the loop that
// completes at once. Nothing else is done, and nobody spins.

#define _GNU_SOURCE
#include "CEngines.h"

#include <errno.h>
#include <libaio.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { block = 4096 };
// Who has the append; `ended` when there are no more.
enum { with_loop, with_worker, ended };

struct offload {
  int fd;
  int readable;  // an eventfd that has counted
  io_context_t context;
  char *memory;
  off_t offset;
  atomic_int owner;
  int error;
};

static void give(struct offload *offload, int owner) {
  atomic_store(&offload->owner, owner);
  syscall(SYS_futex, &offload->owner, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

static void *work(void *argument) {
  struct offload *offload = argument;
  while (1) {
    int owner = atomic_load(&offload->owner);
    if (owner == ended) return NULL;
    if (owner == with_loop) {
      syscall(SYS_futex, &offload->owner, FUTEX_WAIT_PRIVATE, with_loop, NULL, NULL, 0);
      continue;
    }
    struct iovec vector = {offload->memory, block};
    ssize_t count = pwritev2(offload->fd, &vector, 1, offload->offset, 0);
    if (count != block) offload->error = count < 0 ? errno : EIO;
    atomic_store(&offload->owner, with_loop);
    struct iocb wake = {.aio_fildes = offload->readable, .aio_lio_opcode = IO_CMD_POLL};
    wake.u.poll.events = POLLIN;
    struct iocb *blocks = &wake;
    if (io_submit(offload->context, 1, &blocks) != 1) abort();
  }
}

// Appends until the time is over, with an fdatasync always in flight.
static uint64_t append(struct offload *offload, uint64_t deadline) {
  struct iocb sync;
  struct iocb *blocks = &sync;
  uint64_t appends = 0;
  int is_appending = 0, is_syncing = 0;
  do {
    int continues = cengines_now() < deadline && offload->error == 0;
    if (continues && !is_appending) {
      is_appending = 1;
      give(offload, with_worker);
    }
    if (continues && !is_syncing) {
      io_prep_fdsync(&sync, offload->fd);
      is_syncing = io_submit(offload->context, 1, &blocks) == 1;
    }
    struct io_event events[2];
    int count = io_getevents(offload->context, 1, 2, events, NULL);
    for (int i = 0; i < count; i++) {
      if (events[i].obj == &sync) {
        is_syncing = 0;
      } else {
        is_appending = 0;
        offload->offset += block;
        appends++;
      }
    }
  } while (is_appending || is_syncing);
  return appends;
}

int cengines_append_offloaded(int fd, uint64_t runtime, uint64_t *appends) {
  struct offload offload = {.fd = fd, .readable = eventfd(1, EFD_CLOEXEC)};
  void *memory = NULL;
  pthread_t worker;
  int error = offload.readable < 0 ? errno : -io_setup(8, &offload.context);
  if (error == 0) error = posix_memalign(&memory, block, block);
  if (error == 0) {
    offload.memory = memset(memory, 0, block);
    error = pthread_create(&worker, NULL, work, &offload);
  }
  if (error == 0) {
    *appends = append(&offload, cengines_now() + runtime);
    give(&offload, ended);
    pthread_join(worker, NULL);
    error = offload.error;
  }
  if (offload.context) io_destroy(offload.context);
  if (offload.readable >= 0) close(offload.readable);
  free(memory);
  return error;
}

// SPDX-License-Identifier: Apache-2.0
//
// The ring of completions of a kernel AIO context, read in user space.

#ifdef __linux__

#include <linux/aio_abi.h>
#include <stddef.h>

#include "CKernel.h"

// What io_setup maps (fs/aio.c, struct aio_ring). The kernel adds completions at the tail, and
// takes the head, which is the reaper's, to know how much room there is.
struct ring {
  uint32_t id;
  uint32_t slots;
  uint32_t head;
  uint32_t tail;
  uint32_t magic;
  uint32_t compatible_features;
  uint32_t incompatible_features;
  uint32_t header_length;
  struct ckernel_completion events[];
};

// The types of CKernel.h are the kernel's.
#define same(kernels, ours)                                                              \
  _Static_assert(offsetof(struct iocb, kernels) ==                                       \
                     offsetof(struct ckernel_control_block, ours),                       \
                 "a control block as the kernel has it")
same(aio_data, data);
same(aio_key, key);
same(aio_rw_flags, rw_flags);
same(aio_lio_opcode, opcode);
same(aio_fildes, descriptor);
same(aio_buf, memory);
same(aio_nbytes, count);
same(aio_offset, offset);
same(aio_flags, flags);
same(aio_resfd, event);
_Static_assert(sizeof(struct iocb) == sizeof(struct ckernel_control_block), "");
_Static_assert(sizeof(struct io_event) == sizeof(struct ckernel_completion), "");
_Static_assert(offsetof(struct io_event, res) == offsetof(struct ckernel_completion, result), "");

int ckernel_aio_ring_reap(void *context, struct ckernel_completion *events, uint32_t capacity) {
  struct ring *ring = context;
  if (ring->magic != 0xa10a10a1 || ring->incompatible_features != 0) return -1;
  // Ours: nobody else moves the head.
  uint32_t head = ring->head;
  // Acquire: what lies before the tail was written before it was moved.
  uint32_t tail = __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE);
  if (head == tail) return 0;
  uint32_t count = 0;
  while (head != tail && count < capacity) {
    events[count++] = ring->events[head];
    head = head + 1 == ring->slots ? 0 : head + 1;
  }
  // Release: the kernel may write there again once it sees the new head.
  __atomic_store_n(&ring->head, head, __ATOMIC_RELEASE);
  return (int)count;
}

#endif

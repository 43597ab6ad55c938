// SPDX-License-Identifier: Apache-2.0
//
// Whether completions are read from a ring as they were written, while another thread, in the
// kernel's place, writes them. Exits with 0, or with 1 and a sentence. Built for this machine with
// the tests, and for others by ArchitectureTests.

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <stdlib.h>

#include "CKernel.h"

enum { SLOTS = 61, COMPLETIONS = 1000000, BATCH = 16 };

// The layout that the kernel maps (fs/aio.c, struct aio_ring).
static struct {
  uint32_t id, slots, head, tail, magic, compatible_features, incompatible_features, header_length;
  uint64_t events[SLOTS][4];
} ring = {0, SLOTS, 0, 0, 0xa10a10a1, 1, 0, 32, {{0}}};

// What a word of a completion is to be.
static uint64_t word(uint64_t completion, unsigned index) {
  return (completion * 4 + index + 1) * 0x9e3779b97f4a7c15;
}

static void *kernel(void *unused) {
  (void)unused;
  uint32_t tail = 0;
  for (uint64_t completion = 0; completion < COMPLETIONS;) {
    uint32_t next = (tail + 1) % SLOTS;
    // Acquire: the reaper has read the slot before it moved the head.
    if (next == __atomic_load_n(&ring.head, __ATOMIC_ACQUIRE)) continue;
    for (unsigned index = 0; index < 4; index++) ring.events[tail][index] = word(completion, index);
    __atomic_store_n(&ring.tail, next, __ATOMIC_RELEASE);
    tail = next;
    completion++;
  }
  return NULL;
}

int main(void) {
  pthread_t thread;
  if (pthread_create(&thread, NULL, kernel, NULL) != 0) {
    puts("no thread");
    return 1;
  }
  struct ckernel_completion events[BATCH];
  for (uint64_t completion = 0; completion < COMPLETIONS;) {
    int count = ckernel_aio_ring_reap(&ring, events, BATCH);
    if (count < 0 || count > BATCH) {
      printf("the answer of a reap is %d\n", count);
      return 1;
    }
    for (int event = 0; event < count; event++, completion++) {
      uint64_t words[4];
      memcpy(words, &events[event], sizeof words);
      for (unsigned index = 0; index < 4; index++) {
        if (words[index] == word(completion, index)) continue;
        printf("word %u of completion %llu is another\n", index, (unsigned long long)completion);
        return 1;
      }
    }
  }
  pthread_join(thread, NULL);
  return 0;
}

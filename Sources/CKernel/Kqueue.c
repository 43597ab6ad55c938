// SPDX-License-Identifier: Apache-2.0
//
// Events, sets of descriptors and timers on kqueue(2).

#ifdef __APPLE__

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stddef.h>
#include <sys/event.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/types.h>
#include <unistd.h>

#include "CKernel.h"

// poll(2)'s: what epoll(7) calls EPOLLRDHUP.
static const uint32_t read_hang_up = 0x2000;

static int create(void) {
  const int queue = kqueue();
  if (queue < 0) return -errno;
  fcntl(queue, F_SETFD, FD_CLOEXEC);
  return queue;
}

static int change(int queue, uintptr_t identity, int filter, int flags, unsigned notes,
                  int64_t data, uint64_t name) {
  struct kevent event;
  EV_SET(&event, identity, (short)filter, (unsigned short)flags, notes, (intptr_t)data,
         (void *)(uintptr_t)name);
  int answer;
  do {
    answer = kevent(queue, &event, 1, NULL, 0, NULL);
  } while (answer < 0 && errno == EINTR);
  return answer < 0 ? -errno : 0;
}

// Takes the events that are there.
static int take(int queue, struct kevent *events, int capacity) {
  const struct timespec now = {0, 0};
  int count;
  do {
    count = kevent(queue, NULL, 0, events, capacity, &now);
  } while (count < 0 && errno == EINTR);
  return count < 0 ? -errno : count;
}

// MARK: Events

int ckernel_event_create(void) {
  const int queue = create();
  if (queue < 0) return queue;
  const int answer = change(queue, 0, EVFILT_USER, EV_ADD | EV_CLEAR, 0, 0, 0);
  if (answer == 0) return queue;
  close(queue);
  return answer;
}

int ckernel_event_drain(int fd) {
  struct kevent event;
  return take(fd, &event, 1);
}

int ckernel_event_signal(int fd) {
  return change(fd, 0, EVFILT_USER, 0, NOTE_TRIGGER, 0, 0);
}

// MARK: Timers

int ckernel_timer_create(void) { return create(); }

int ckernel_timer_set(int fd, uint64_t nanoseconds) {
  // One that has fired goes in any case, and with it the readability.
  struct kevent fired;
  const int answer = change(fd, 0, EVFILT_TIMER, EV_DELETE, 0, 0, 0);
  if (answer < 0 && answer != -ENOENT) return answer;
  const int taken = take(fd, &fired, 1);
  if (taken < 0) return taken;
  if (nanoseconds == 0) return 0;
  const uint64_t now = ckernel_monotonic_nanoseconds();
  uint64_t left = nanoseconds > now ? nanoseconds - now : 0;
  if (left > INT64_MAX) left = INT64_MAX;
  // Critical: not delayed to fire together with others.
  return change(fd, 0, EVFILT_TIMER, EV_ADD | EV_ONESHOT, NOTE_NSECONDS | NOTE_CRITICAL,
                (int64_t)left, 0);
}

// MARK: Sets

int ckernel_poll_set_create(void) { return create(); }

// Those that are not there are no error.
static void remove_filters(int set, int fd) {
  const int filters[] = {EVFILT_READ, EVFILT_WRITE, EVFILT_EXCEPT};
  for (unsigned index = 0; index < sizeof filters / sizeof filters[0]; index++) {
    change(set, (uintptr_t)fd, filters[index], EV_DELETE, 0, 0, 0);
  }
}

static int add_filters(int set, int fd, uint32_t events, uint64_t name) {
  const uintptr_t identity = (uintptr_t)fd;
  // Without POLLIN for the end of the stream alone: no number of bytes is enough, and it is told
  // once.
  int answer = events & POLLIN ? change(set, identity, EVFILT_READ, EV_ADD, 0, 0, name)
                               : change(set, identity, EVFILT_READ, EV_ADD | EV_CLEAR, NOTE_LOWAT,
                                        INT_MAX, name);
  if (answer == 0 && events & POLLOUT) {
    answer = change(set, identity, EVFILT_WRITE, EV_ADD, 0, 0, name);
  }
  if (answer == 0 && events & POLLPRI) {
    answer = change(set, identity, EVFILT_EXCEPT, EV_ADD, NOTE_OOB, 0, name);
  }
  return answer;
}

static int set_filters(int set, int fd, uint32_t events, uint64_t name) {
  // One that is there keeps its EV_CLEAR, or its lack, when it is added again.
  remove_filters(set, fd);
  const int answer = add_filters(set, fd, events, name);
  // Half of it would be told under a name that nobody knows.
  if (answer < 0) remove_filters(set, fd);
  return answer;
}

int ckernel_poll_set_add(int set, int fd, uint32_t events, uint64_t data) {
  struct stat status;
  if (fstat(fd, &status) < 0) return -errno;
  // As epoll(7): these are always ready.
  if (S_ISREG(status.st_mode) || S_ISDIR(status.st_mode)) return -EPERM;
  return set_filters(set, fd, events, data);
}

int ckernel_poll_set_modify(int set, int fd, uint32_t events, uint64_t data) {
  return ckernel_poll_set_add(set, fd, events, data);
}

int ckernel_poll_set_remove(int set, int fd) {
  remove_filters(set, fd);
  return 0;
}

int ckernel_poll_set_try(int fd) {
  const int set = create();
  if (set < 0) return set;
  const int answer = set_filters(set, fd, POLLIN, 0);
  close(set);
  return answer;
}

// What an event means in poll(2)'s masks.
static uint32_t meaning(const struct kevent *event) {
  if (event->flags & EV_ERROR) return POLLERR;
  if (event->filter == EVFILT_WRITE) return event->flags & EV_EOF ? POLLOUT | POLLHUP : POLLOUT;
  if (event->filter == EVFILT_EXCEPT) return POLLPRI;
  return event->flags & EV_EOF ? POLLIN | read_hang_up : POLLIN;
}

int ckernel_poll_set_ready(int set, struct ckernel_readiness *ready, int capacity) {
  struct kevent events[64];
  const int taken = take(set, events, capacity > 64 ? 64 : capacity);
  if (taken < 0) return taken;
  int count = 0;
  for (int index = 0; index < taken; index++) {
    const uint64_t data = (uint64_t)(uintptr_t)events[index].udata;
    // Reading and writing are two events of a descriptor here, and one of poll(2)'s.
    int place = 0;
    while (place < count && ready[place].data != data) place++;
    if (place == count) ready[count++] = (struct ckernel_readiness){.data = data};
    ready[place].events |= meaning(&events[index]);
  }
  return count;
}

#endif

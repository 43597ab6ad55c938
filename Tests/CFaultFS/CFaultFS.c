// SPDX-License-Identifier: Apache-2.0
//
// A FUSE file system for tests: every name that is looked up is a file, and the words in the name
// say how it misbehaves.
//
// One thread serves all: a request that is to hang is put aside and answered when the gate opens,
// so that a hung file holds up no other. A file has 1 MiB at first, whose byte at offset n is n %
// 251; with "empty" in its name, none.
//
//   hangopen hangread hangwrite hangfsync hangflush   the call hangs until the gate opens
//   shortread shortwrite                              half of what was asked for
//   oddread oddwrite                                  1000 bytes at a time
//   zerosize                                          a size of 0, although there are data
//   direct                                            FOPEN_DIRECT_IO: around the page cache
//   eioread eiowrite                                  EIO
//   eiofsync                                          EIO from the first fsync after a write, and
//                                                     then success
//   enospc                                            room for 1 MiB
//
// Without "direct", the kernel takes a short read for the end of the file, and keeps to it.
// The file "hanging" holds the number of requests that hang, in decimal.

#include "CFaultFS.h"

#include "FuseChannel.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_FILES 1024
#define MAX_SIZE (8u << 20)
#define FIRST_SIZE (1u << 20)

struct file {
  char name[64];
  size_t size;
  // NULL as long as the file has what it had at first.
  char *data;
  int fsyncs;
};

// A request that hangs: what the kernel sent.
struct parked {
  struct parked *next;
  size_t length;
  char bytes[];
};

static int channel;
static int is_open;
static struct file files[MAX_FILES];
static unsigned file_count;
static struct parked *first_parked, **last_parked = &first_parked;
static unsigned parked_count;

static int has(const struct file *file, const char *word) {
  return strstr(file->name, word) != NULL;
}

static void answer(const struct fuse_in_header *in, int error, const void *body, size_t length) {
  fuse_answer(channel, in, error, body, length);
}

static struct file *file_of(uint64_t node) {
  return node >= 2 && node < file_count + 2 ? &files[node - 2] : NULL;
}

static uint64_t look_up(const char *name) {
  for (unsigned i = 0; i < file_count; i++) {
    if (strcmp(files[i].name, name) == 0) return i + 2;
  }
  if (file_count == MAX_FILES || strlen(name) >= sizeof files[0].name) return 0;
  struct file *file = &files[file_count];
  strcpy(file->name, name);
  file->size = has(file, "empty") ? 0 : FIRST_SIZE;
  return file_count++ + 2;
}

static struct fuse_attr attributes(uint64_t node) {
  struct file *file = file_of(node);
  struct fuse_attr attr = {.ino = node, .nlink = 1, .blksize = 4096};
  attr.mode = file ? S_IFREG | 0666 : S_IFDIR | 0755;
  if (file && !has(file, "zerosize")) attr.size = file->size;
  attr.blocks = (attr.size + 511) / 512;
  return attr;
}

// The file's bytes, which may be changed up to MAX_SIZE; beyond its size they are zeros.
static char *contents(struct file *file) {
  if (file->data) return file->data;
  file->data = calloc(1, MAX_SIZE);
  if (!file->data) abort();
  for (size_t i = 0; i < file->size; i++) file->data[i] = (char)(i % 251);
  return file->data;
}

static void resize(struct file *file, size_t size) {
  char *data = contents(file);
  if (size < file->size) memset(data + size, 0, file->size - size);
  file->size = size;
}

static void read_file(const struct fuse_in_header *in, const struct fuse_read_in *asked) {
  static char buffer[FUSE_MAX_TRANSFER];
  struct file *file = file_of(in->nodeid);
  if (strcmp(file->name, "hanging") == 0) {
    int length = snprintf(buffer, sizeof buffer, "%u", parked_count);
    return answer(in, 0, buffer, asked->offset == 0 ? (size_t)length : 0);
  }
  if (has(file, "eioread")) return answer(in, EIO, NULL, 0);
  size_t count = asked->size < FUSE_MAX_TRANSFER ? asked->size : FUSE_MAX_TRANSFER;
  if (asked->offset >= file->size) return answer(in, 0, NULL, 0);
  if (count > file->size - asked->offset) count = file->size - asked->offset;
  if (has(file, "shortread") && count > 1) count /= 2;
  if (has(file, "oddread") && count > 1000) count = 1000;
  answer(in, 0, contents(file) + asked->offset, count);
}

static void write_file(const struct fuse_in_header *in, const struct fuse_write_in *asked) {
  struct file *file = file_of(in->nodeid);
  size_t count = asked->size;
  size_t limit = has(file, "enospc") ? FIRST_SIZE : MAX_SIZE;
  if (has(file, "eiowrite")) return answer(in, EIO, NULL, 0);
  if (has(file, "shortwrite") && count > 1) count /= 2;
  if (has(file, "oddwrite") && count > 1000) count = 1000;
  if (asked->offset >= limit) return answer(in, ENOSPC, NULL, 0);
  if (count > limit - asked->offset) count = limit - asked->offset;
  memcpy(contents(file) + asked->offset, asked + 1, count);
  if (asked->offset + count > file->size) file->size = asked->offset + count;
  struct fuse_write_out out = {.size = (uint32_t)count};
  answer(in, 0, &out, sizeof out);
}

static int is_to_hang(const struct fuse_in_header *in) {
  struct file *file = file_of(in->nodeid);
  if (is_open || !file) return 0;
  switch (in->opcode) {
    case FUSE_OPEN: return has(file, "hangopen");
    case FUSE_READ: return has(file, "hangread");
    case FUSE_WRITE: return has(file, "hangwrite");
    case FUSE_FSYNC: return has(file, "hangfsync");
    case FUSE_FLUSH: return has(file, "hangflush");
    default: return 0;
  }
}

static void serve(const struct fuse_in_header *in) {
  const void *body = in + 1;
  struct file *file = file_of(in->nodeid);
  switch (in->opcode) {
    case FUSE_INIT: return fuse_answer_init(channel, in, body);
    case FUSE_FORGET:
    case FUSE_BATCH_FORGET: return;
    case FUSE_LOOKUP: {
      struct fuse_entry_out out = {
          .nodeid = look_up(body), .generation = 1, .entry_valid = 3600};
      if (out.nodeid == 0) return answer(in, ENOSPC, NULL, 0);
      out.attr = attributes(out.nodeid);
      return answer(in, 0, &out, sizeof out);
    }
    case FUSE_SETATTR: {
      const struct fuse_setattr_in *asked = body;
      if (file && asked->valid & FATTR_SIZE) {
        if (asked->size > MAX_SIZE) return answer(in, EFBIG, NULL, 0);
        resize(file, asked->size);
      }
    }  // Fall through: both are answered with what the attributes now are.
    case FUSE_GETATTR: {
      struct fuse_attr_out out = {.attr = attributes(in->nodeid)};
      return answer(in, 0, &out, sizeof out);
    }
    case FUSE_OPEN: {
      int is_direct = has(file, "direct") || strcmp(file->name, "hanging") == 0;
      struct fuse_open_out out = {.open_flags = is_direct ? FOPEN_DIRECT_IO : 0};
      return answer(in, 0, &out, sizeof out);
    }
    case FUSE_OPENDIR: {
      struct fuse_open_out out = {0};
      return answer(in, 0, &out, sizeof out);
    }
    case FUSE_READDIR: return fuse_answer_readdir(channel, in, body);
    case FUSE_READ: return read_file(in, body);
    case FUSE_WRITE: return write_file(in, body);
    case FUSE_FSYNC: {
      const int fails = has(file, "eiofsync") && file->data && !file->fsyncs++;
      return answer(in, fails ? EIO : 0, NULL, 0);
    }
    case FUSE_STATFS: return fuse_answer_statfs(channel, in);
    case FUSE_FLUSH:
    case FUSE_RELEASE:
    case FUSE_RELEASEDIR:
    case FUSE_UNLINK: return answer(in, 0, NULL, 0);
    default: return answer(in, ENOSYS, NULL, 0);
  }
}

static void park(const void *request, size_t length) {
  struct parked *parked = malloc(sizeof *parked + length);
  if (!parked) abort();
  parked->next = NULL;
  parked->length = length;
  memcpy(parked->bytes, request, length);
  *last_parked = parked;
  last_parked = &parked->next;
  parked_count++;
}

static void open_gate(void) {
  is_open = 1;
  while (first_parked) {
    struct parked *parked = first_parked;
    first_parked = parked->next;
    parked_count--;
    serve((const struct fuse_in_header *)parked->bytes);
    free(parked);
  }
  last_parked = &first_parked;
}

int cfaultfs_run(const char *mountpoint) {
  static char buffer[FUSE_BUFFER_SIZE] __attribute__((aligned(8)));
  channel = fuse_channel_open("faultfs", mountpoint);
  if (channel < 0) return -channel;
  struct pollfd polled[] = {{.fd = channel, .events = POLLIN}, {.fd = 0, .events = POLLIN}};
  while (poll(polled, 2, -1) >= 0 || errno == EINTR) {
    if (polled[1].revents) {
      char command;
      if (read(0, &command, 1) != 1 || command == 'q') break;
      if (command == 'r') open_gate();
    }
    ssize_t length = read(channel, buffer, sizeof buffer);
    if (length < 0) {
      // ENOENT: the request was interrupted before it was read. ENODEV: somebody unmounted us.
      if (errno == EAGAIN || errno == EINTR || errno == ENOENT) continue;
      break;
    }
    const struct fuse_in_header *in = (const struct fuse_in_header *)buffer;
    if (is_to_hang(in)) {
      park(buffer, (size_t)length);
    } else {
      serve(in);
    }
  }
  fuse_channel_close(channel, mountpoint);
  return 0;
}

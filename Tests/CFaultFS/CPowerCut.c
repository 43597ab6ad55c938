// SPDX-License-Identifier: Apache-2.0
//
// A FUSE file system with one disk in it, for tests of what a power failure leaves:
//
//   disk           the disk, to be put beneath a loop device; each write and flush of it is logged
//   position       how many entries the log has, in decimal
//   log            a letter for each entry: w for a write, f for a flush
//   cut-P-SEED     what may be on the disk when the power fails just before entry P is logged
//
// When an image is renamed to "disk", the power is back: the disk continues with what the image
// has, all of it durable, and with an empty log.
//
// A write is durable with the first flush that was asked for after the write had been answered. All
// durable writes of the first P entries are in the image of a cut; of the others an arbitrary part,
// as the seed says, in the order of the log: by sectors of 512 bytes, by blocks of 4096, or by
// whole writes, few of them or nearly all, none or all.
//
// Whether an answer was before a flush was asked for, only the kernel knows. So requests are read
// until there is none, before any of them is answered: a flush does not cover the writes that were
// read together with it, which had no answer then.
//
// The disk is a private mapping of the file that it begins with, and so is each image: only what
// has been written takes memory. There is one image at a time: looking up the next one takes the
// last one away.

#define _GNU_SOURCE

#include "CFaultFS.h"

#include "FuseChannel.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

enum { ROOT = FUSE_ROOT_ID, DISK, POSITION, LOG, FIRST_IMAGE };

// A write, or a flush: without data.
struct entry {
  uint64_t offset;
  size_t length;
  char *data;
  // Of a flush: how many entries it makes durable, from the first one.
  size_t covered;
};

struct request {
  struct request *next;
  struct fuse_in_header header;
  // What follows the header.
  char body[];
};

static int channel;
static int base;
static size_t size;
static char *disk;

static struct entry *entries;
static size_t entry_count, entry_room;
// The length of the log when the requests that are being answered had not been read.
static size_t answered_count;

static char *image;
static char image_name[64];
static uint64_t image_node = FIRST_IMAGE - 1;

static void answer(const struct fuse_in_header *in, int error, const void *body, size_t length) {
  fuse_answer(channel, in, error, body, length);
}

static struct entry *append_entry(void) {
  if (entry_count == entry_room) {
    entry_room = entry_room ? 2 * entry_room : 1024;
    entries = realloc(entries, entry_room * sizeof *entries);
    if (!entries) abort();
  }
  struct entry *entry = &entries[entry_count++];
  memset(entry, 0, sizeof *entry);
  return entry;
}

// The contents that the disk had at first.
static char *map_base(void) {
  char *bytes =
      mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, base, 0);
  if (bytes == MAP_FAILED) abort();
  return bytes;
}

// SplitMix64.
static uint64_t next_random(uint64_t *state) {
  uint64_t z = *state += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

static char *make_image(size_t position, uint64_t seed) {
  static const size_t units[] = {512, 512, 4096, SIZE_MAX};
  // Of 16 units that are not durable, so many are on the disk.
  static const unsigned kept_of_16[] = {0, 1, 4, 8, 12, 15, 16};
  size_t durable = 0;
  for (size_t i = 0; i < position; i++) {
    if (!entries[i].data) durable = entries[i].covered;
  }
  char *bytes = map_base();
  const size_t unit = units[next_random(&seed) % 4];
  const unsigned kept = kept_of_16[next_random(&seed) % 7];
  for (size_t i = 0; i < position; i++) {
    const struct entry *entry = &entries[i];
    size_t done = 0;
    while (entry->data && done < entry->length) {
      const uint64_t offset = entry->offset + done;
      size_t count = unit == SIZE_MAX ? SIZE_MAX : unit - offset % unit;
      if (count > entry->length - done) count = entry->length - done;
      if (i < durable || next_random(&seed) % 16 < kept)
        memcpy(bytes + offset, entry->data + done, count);
      done += count;
    }
  }
  return bytes;
}

// The node of a name; 0 if it means nothing.
static uint64_t look_up(const char *name) {
  if (strcmp(name, "disk") == 0) return DISK;
  if (strcmp(name, "position") == 0) return POSITION;
  if (strcmp(name, "log") == 0) return LOG;
  if (image && strcmp(name, image_name) == 0) return image_node;
  size_t position;
  unsigned long long seed;
  if (sscanf(name, "cut-%zu-%llu", &position, &seed) != 2 || position > entry_count) return 0;
  if (strlen(name) >= sizeof image_name) return 0;
  if (image) munmap(image, size);
  image = make_image(position, seed);
  strcpy(image_name, name);
  return ++image_node;
}

// Whether a block has nothing but zeros.
static int is_zero(const char *block, size_t count) {
  return block[0] == 0 && memcmp(block, block + 1, count - 1) == 0;
}

// The disk continues with what the image has. Returns 0, or an errno.
static int continue_from_image(void) {
  const int contents = memfd_create("powercut", MFD_CLOEXEC);
  if (contents < 0) return errno;
  int error = ftruncate(contents, (off_t)size) == 0 ? 0 : errno;
  for (size_t offset = 0; offset < size && !error; offset += 4096) {
    const size_t count = size - offset < 4096 ? size - offset : 4096;
    if (is_zero(image + offset, count)) continue;
    if (pwrite(contents, image + offset, count, (off_t)offset) != (ssize_t)count) error = ENOSPC;
  }
  if (error) {
    close(contents);
    return error;
  }
  close(base);
  base = contents;
  munmap(image, size);
  image = NULL;
  munmap(disk, size);
  disk = map_base();
  for (size_t i = 0; i < entry_count; i++) free(entries[i].data);
  entry_count = answered_count = 0;
  return 0;
}

static void rename_image(const struct fuse_in_header *in, const struct fuse_rename_in *asked) {
  const char *from = (const char *)(asked + 1);
  const char *to = from + strlen(from) + 1;
  const int is_image = image && strcmp(from, image_name) == 0 && strcmp(to, "disk") == 0;
  answer(in, is_image ? continue_from_image() : EINVAL, NULL, 0);
}

// The bytes of a disk; NULL: it is no disk, or an image that was taken away.
static char *bytes_of(uint64_t node) {
  return node == DISK ? disk : node == image_node && node >= FIRST_IMAGE ? image : NULL;
}

static struct fuse_attr attributes(uint64_t node) {
  struct fuse_attr attr = {.ino = node, .nlink = 1, .blksize = 4096};
  attr.mode = node == ROOT ? S_IFDIR | 0755 : S_IFREG | 0600;
  attr.size = bytes_of(node) ? size : node == LOG ? entry_count : 0;
  attr.blocks = (attr.size + 511) / 512;
  return attr;
}

static void read_text(const struct fuse_in_header *in, const struct fuse_read_in *asked) {
  static char text[FUSE_MAX_TRANSFER];
  size_t count = 0;
  if (in->nodeid == POSITION) {
    if (asked->offset == 0) count = (size_t)snprintf(text, sizeof text, "%zu", entry_count);
  } else {
    while (count < asked->size && count < sizeof text && asked->offset + count < entry_count) {
      text[count] = entries[asked->offset + count].data ? 'w' : 'f';
      count++;
    }
  }
  answer(in, 0, text, count);
}

static void read_disk(const struct fuse_in_header *in, const struct fuse_read_in *asked) {
  if (in->nodeid == POSITION || in->nodeid == LOG) return read_text(in, asked);
  const char *bytes = bytes_of(in->nodeid);
  if (!bytes) return answer(in, EIO, NULL, 0);
  if (asked->offset >= size) return answer(in, 0, NULL, 0);
  size_t count = asked->size < size - asked->offset ? asked->size : size - asked->offset;
  answer(in, 0, bytes + asked->offset, count);
}

static void write_disk(const struct fuse_in_header *in, const struct fuse_write_in *asked) {
  char *bytes = bytes_of(in->nodeid);
  if (!bytes) return answer(in, EIO, NULL, 0);
  if (asked->offset > size || asked->size > size - asked->offset)
    return answer(in, ENOSPC, NULL, 0);
  memcpy(bytes + asked->offset, asked + 1, asked->size);
  if (in->nodeid == DISK) {
    struct entry *entry = append_entry();
    entry->offset = asked->offset;
    entry->length = asked->size;
    entry->data = malloc(asked->size + 1);
    if (!entry->data) abort();
    memcpy(entry->data, asked + 1, asked->size);
  }
  struct fuse_write_out out = {.size = asked->size};
  answer(in, 0, &out, sizeof out);
}

static void flush_disk(const struct fuse_in_header *in) {
  if (in->nodeid == DISK) append_entry()->covered = answered_count;
  answer(in, 0, NULL, 0);
}

static void serve(const struct fuse_in_header *in, const void *body) {
  switch (in->opcode) {
    case FUSE_INIT: return fuse_answer_init(channel, in, body);
    case FUSE_FORGET:
    case FUSE_BATCH_FORGET: return;
    case FUSE_LOOKUP: {
      struct fuse_entry_out out = {.nodeid = look_up(body), .generation = 1};
      if (out.nodeid == 0) return answer(in, ENOENT, NULL, 0);
      out.attr = attributes(out.nodeid);
      return answer(in, 0, &out, sizeof out);
    }
    case FUSE_SETATTR:
    case FUSE_GETATTR: {
      struct fuse_attr_out out = {.attr = attributes(in->nodeid)};
      return answer(in, 0, &out, sizeof out);
    }
    case FUSE_OPEN: {
      // Around the page cache, and without waiting for one another: as a disk's requests come.
      struct fuse_open_out out = {
          .open_flags = FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES};
      return answer(in, 0, &out, sizeof out);
    }
    case FUSE_OPENDIR: {
      struct fuse_open_out out = {0};
      return answer(in, 0, &out, sizeof out);
    }
    case FUSE_READDIR: return fuse_answer_readdir(channel, in, body);
    case FUSE_READ: return read_disk(in, body);
    case FUSE_WRITE: return write_disk(in, body);
    case FUSE_FSYNC: return flush_disk(in);
    case FUSE_RENAME: return rename_image(in, body);
    case FUSE_STATFS: return fuse_answer_statfs(channel, in);
    case FUSE_FLUSH:
    case FUSE_RELEASE:
    case FUSE_RELEASEDIR: return answer(in, 0, NULL, 0);
    default: return answer(in, ENOSYS, NULL, 0);
  }
}

// Reads the requests that there are, and then answers them.
//
// Returns 0 when the file system has been unmounted.
static int serve_batch(void) {
  static char buffer[FUSE_BUFFER_SIZE] __attribute__((aligned(8)));
  struct request *first = NULL, **last = &first;
  int is_mounted = 1;
  answered_count = entry_count;
  for (;;) {
    ssize_t length = read(channel, buffer, sizeof buffer);
    // ENOENT: the request was interrupted before it was read.
    if (length < 0 && (errno == EINTR || errno == ENOENT)) continue;
    if (length < 0) {
      is_mounted = errno == EAGAIN;
      break;
    }
    struct request *request = malloc(sizeof request->next + (size_t)length);
    if (!request) abort();
    request->next = NULL;
    memcpy(&request->header, buffer, (size_t)length);
    *last = request;
    last = &request->next;
  }
  while (first) {
    struct request *request = first;
    first = request->next;
    serve(&request->header, request->body);
    free(request);
  }
  return is_mounted;
}

int cpowercut_run(const char *mountpoint, const char *contents, const char *mounted) {
  struct stat status;
  base = open(contents, O_RDONLY | O_CLOEXEC);
  if (base < 0 || fstat(base, &status) != 0) {
    int error = errno;
    printf("%s: %s\n", contents, strerror(error));
    return error;
  }
  size = (size_t)status.st_size;
  disk = map_base();
  channel = fuse_channel_open("powercut", mountpoint);
  if (channel < 0) return -channel;
  struct pollfd polled[] = {{.fd = channel, .events = POLLIN}, {.fd = 0, .events = POLLIN}};
  while (poll(polled, 2, -1) >= 0 || errno == EINTR) {
    // The parent has closed it, or has ended.
    if (polled[1].revents) break;
    if (polled[0].revents && !serve_batch()) break;
  }
  fuse_channel_close(channel, mountpoint);
  // If the parent was killed, it is still there. It does not wait for the disk, which fails now.
  umount2(mounted, MNT_DETACH);
  return 0;
}

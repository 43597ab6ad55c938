// SPDX-License-Identifier: Apache-2.0

#include "FuseChannel.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static int mount_channel(const char *name, const char *mountpoint) {
  int channel = open("/dev/fuse", O_RDWR | O_CLOEXEC | O_NONBLOCK);
  if (channel < 0) return -errno;
  char options[128];
  snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other",
           channel);
  if (mount(name, mountpoint, "fuse", MS_NOSUID | MS_NODEV, options) != 0) {
    int error = errno;
    close(channel);
    return -error;
  }
  return channel;
}

int fuse_channel_open(const char *name, const char *mountpoint) {
  int channel = mount_channel(name, mountpoint);
  printf("%s\n", channel < 0 ? strerror(-channel) : "mounted");
  fflush(stdout);
  return channel;
}

void fuse_channel_close(int channel, const char *mountpoint) {
  umount2(mountpoint, MNT_DETACH);
  close(channel);
}

void fuse_answer(
    int channel, const struct fuse_in_header *in, int error, const void *body, size_t length) {
  struct fuse_out_header out = {
      .len = (uint32_t)(sizeof out + length), .error = -error, .unique = in->unique};
  struct iovec parts[] = {{&out, sizeof out}, {(void *)body, length}};
  (void)!writev(channel, parts, 2);
}

void fuse_answer_init(
    int channel, const struct fuse_in_header *in, const struct fuse_init_in *asked) {
  const uint32_t flags =
      FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_ASYNC_DIO | FUSE_MAX_PAGES | FUSE_PARALLEL_DIROPS;
  struct fuse_init_out out = {
      .major = FUSE_KERNEL_VERSION,
      .minor = asked->minor < FUSE_KERNEL_MINOR_VERSION ? asked->minor : FUSE_KERNEL_MINOR_VERSION,
      .max_readahead = asked->max_readahead,
      .flags = asked->flags & flags,
      // The kernel would else keep back all files' requests when twelve of a hung one wait.
      .max_background = 65535,
      .congestion_threshold = 65535,
      .max_write = FUSE_MAX_TRANSFER,
      .time_gran = 1,
      .max_pages = FUSE_MAX_TRANSFER / 4096,
  };
  fuse_answer(channel, in, 0, &out, sizeof out);
}

void fuse_answer_statfs(int channel, const struct fuse_in_header *in) {
  struct fuse_statfs_out out = {
      .st = {.blocks = 1 << 20, .bfree = 1 << 20, .bavail = 1 << 20, .bsize = 4096,
             .frsize = 4096, .namelen = 63}};
  fuse_answer(channel, in, 0, &out, sizeof out);
}

void fuse_answer_readdir(
    int channel, const struct fuse_in_header *in, const struct fuse_read_in *asked) {
  // An entry, and its name behind it.
  uint64_t space[8] = {0};
  struct fuse_dirent *dot = (struct fuse_dirent *)space;
  dot->ino = dot->off = dot->namelen = 1;
  dot->type = S_IFDIR >> 12;
  dot->name[0] = '.';
  fuse_answer(channel, in, 0, dot, asked->offset == 0 ? FUSE_DIRENT_SIZE(dot) : 0);
}

// SPDX-License-Identifier: Apache-2.0
//
// The calls that differ between Linux and Darwin, and those that Swift's overlay of glibc hides.
// Everything here answers as the kernel does: 0 or more on success, -errno on failure. Linux.c and
// Darwin.c have one implementation each, Posix.c what both share.

#ifndef CKERNEL_H
#define CKERNEL_H

// The kernel's completion ring is read in user space, by a layout that is known for these machines.
#if !defined(__LP64__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "DispatchAIO takes a 64-bit little-endian machine: it reads the kernel's completion ring itself"
#endif

#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/types.h>

// The values differ between architectures, so that they come from C. Flags of ckernel_open that
// Darwin's open(2) does not have (O_DIRECT, O_TMPFILE) are numbers there that it does not use.
extern const int ckernel_o_direct;
extern const int ckernel_o_path;
extern const int ckernel_o_tmpfile;
extern const int ckernel_rwf_nowait;

// The calling thread, as a number.
static inline uintptr_t ckernel_thread(void) { return (uintptr_t)pthread_self(); }

// clock_gettime(CLOCK_MONOTONIC), on Darwin CLOCK_UPTIME_RAW, in nanoseconds; takes some 20 of
// them.
uint64_t ckernel_monotonic_nanoseconds(void);

// A descriptor that is readable once it was signalled, until it is drained; non-blocking and
// close-on-exec: an eventfd(2), or a kqueue(2) with an event of the user's.
int ckernel_event_create(void);

// Answers 1 when it had been signalled, 0 when it had not.
int ckernel_event_drain(int fd);

int ckernel_event_signal(int fd);

// Adds a descriptor to a set of its own, and drops the set: answers what the kernel did, -ENOSPC
// for one when the user has no more epoll watches.
int ckernel_poll_set_try(int fd);

// A set of descriptors whose readiness is asked for: epoll(7) or kqueue(2), close-on-exec. It is
// readable while one of them is ready.
int ckernel_poll_set_create(void);

// Adds a descriptor to a set, level-triggered, with what it waits for (poll(2)'s masks) and what it
// is called; changes both; removes it. -EPERM for a regular file and a directory. Linux also takes
// EPOLLONESHOT, and tells what is in the set already and what is not. On Darwin a hang-up of both
// sides is told where writing is waited for.
int ckernel_poll_set_add(int set, int fd, uint32_t events, uint64_t data);
int ckernel_poll_set_modify(int set, int fd, uint32_t events, uint64_t data);
int ckernel_poll_set_remove(int set, int fd);

struct ckernel_readiness {
  uint64_t data;
  uint32_t events;
};

// What is ready, up to 64 of it, without a wait. Answers how many.
int ckernel_poll_set_ready(int set, struct ckernel_readiness *ready, int capacity);

// A descriptor that is readable from a moment on, by the clock of ckernel_monotonic_nanoseconds:
// a timerfd(2), or a kqueue(2) with a timer; non-blocking and close-on-exec. And that moment, 0 for
// never; to set it ends the readability.
int ckernel_timer_create(void);
int ckernel_timer_set(int fd, uint64_t nanoseconds);

// How many bytes can be read from a descriptor without waiting (FIONREAD).
int64_t ckernel_bytes_available(int fd);

// How openat2(2) resolves a path: only from the kernel's lookup cache, beneath the directory, on
// the directory's mount, without the links of /proc (linux/openat2.h).
extern const uint64_t ckernel_resolve_cached;
extern const uint64_t ckernel_resolve_beneath;
extern const uint64_t ckernel_resolve_no_mounts;
extern const uint64_t ckernel_resolve_no_magic_links;

// The directory number for paths that are relative to the working directory.
extern const int ckernel_at_cwd;

// openat(2), or with a `resolve` openat2(2) (Linux 5.6; resolve_cached 5.12). Repeats what a signal
// interrupts, and, up to 64 times, what somebody's rename of a directory made uncertain. On Darwin
// O_RESOLVE_BENEATH (EACCES, not EXDEV, for what leaves the directory), -EAGAIN for resolve_cached,
// and nothing for the two others; O_DIRECT is F_NOCACHE; O_PATH is O_EVTONLY, which takes the right
// to read, and opens a device.
int ckernel_open(int directory, const char *path, int flags, mode_t mode, uint64_t resolve);

// Adds O_DIRECT to the flags of an open file, or F_NOCACHE.
int ckernel_set_direct(int fd);

// What statx(2) says of an open file.
struct ckernel_status {
  int64_t size;
  int64_t modified_seconds, changed_seconds;
  uint32_t modified_nanoseconds, changed_nanoseconds;
  uint64_t inode, links;
  uint64_t device;              // st_dev
  uint64_t represented_device;  // st_rdev
  // Names the mount: no other has had the number since the machine started (STATX_MNT_ID_UNIQUE,
  // Linux 6.8). Before that made of the mount's number and the disk's. 0 when neither is known, as
  // on Darwin.
  uint64_t mount;
  mode_t mode;
  // STATX_DIOALIGN (Linux 6.1), if has_alignment. On Darwin nothing has to be aligned.
  int has_alignment;
  uint32_t memory_alignment;  // stx_dio_mem_align, bytes; 0 when direct I/O is not supported
  uint32_t offset_alignment;  // stx_dio_offset_align, bytes; 0 when direct I/O is not supported
  // STATX_WRITE_ATOMIC (Linux 6.11), bytes; 0 when no write is untorn.
  uint32_t atomic_unit_minimum, atomic_unit_maximum;
};

// statx(2) of an open file, or fstat(2) where that is all there is.
//
// asks_nobody: asks no process and no machine that serves the file: what is sure is the mount and
// the type, the rest is what the kernel has at hand.
int ckernel_status(int fd, int asks_nobody, struct ckernel_status *status);

// How many names a file has.
int64_t ckernel_link_count(int fd);

// What fstatfs(2) says of the file system that an open file is on.
struct ckernel_file_system {
  uint32_t magic;      // f_type: one of linux/magic.h, on Darwin that of the like on Linux
  int is_synchronous;  // whether it is mounted with `-o sync`
};

int ckernel_file_system(int fd, struct ckernel_file_system *answer);

// Reads the map of an ext4 file's blocks into memory (EXT4_IOC_PRECACHE_EXTENTS), and does nothing
// on another file system. May sleep, for one read for each 340 extents or so.
int ckernel_cache_block_map(int fd);

// Opens the file of a descriptor once more, through /proc/self/fd, for reading with O_DIRECT.
// Answers the new descriptor, which is close-on-exec, or -EMFILE if it would be among the last.
// May sleep.
int ckernel_reopen_direct(int fd);

// The same for writing without O_DIRECT, with the other flags of the descriptor, and without the
// look at the last numbers: the write cannot do without.
int ckernel_reopen_buffered(int fd);

// Whether a descriptor is among the last 16 numbers of the process (RLIMIT_NOFILE). Dispatch needs
// one to look after its workers, once a second, and ends the process if there is none: so those who
// can wait, or do without, leave these to others.
int ckernel_is_among_last(int fd);

// How many bytes of the pages of a range are in the page cache (cachestat(2), Linux 6.5); -EPERM
// for a file that the caller may neither write nor owns.
int64_t ckernel_cached_bytes(int fd, int64_t offset, int64_t length);

// Whether all pages of a range of a file, up to the end of the file, are in the page cache: 1 or 0;
// or what ckernel_cached_bytes answers if the kernel does not tell. Starts no reading. A page that
// is being read counts. If there is none, the known size tells whether the range is beyond it.
int ckernel_is_cached(int fd, int64_t offset, int64_t length, int64_t known_size);

// preadv2(2) into one piece of memory, with RWF_NOWAIT if is_nowait: -EAGAIN if it would wait, and
// -EOPNOTSUPP on a file system that has no NOWAIT.
int64_t ckernel_read_at(int fd, void *memory, uintptr_t length, int64_t offset, int is_nowait);

// Whether a descriptor is a stream socket (SO_TYPE) that does not block (O_NONBLOCK): 0, -ENOTSOCK,
// -EPROTOTYPE for another socket, -EWOULDBLOCK for one that blocks, or what the kernel says.
int ckernel_check_socket(int fd);

// sendfile(2), without SIGPIPE. It waits for what is not in the page cache.
int64_t ckernel_sendfile(int socket, int fd, int64_t offset, uint64_t count);

// sendmsg(2) of two pieces, without waiting and without SIGPIPE. has_more: more follows at once, to
// go into the same packet.
int64_t ckernel_send(int socket, const void *first, uint64_t first_count, const void *second,
                    uint64_t second_count, int has_more);

// The logical sector size of a block device (BLKSSZGET), in bytes.
int ckernel_block_device_sector_size(int fd);

// The size of a block device (BLKGETSIZE64), in bytes; -EOVERFLOW when it has no number.
int64_t ckernel_block_device_size(int fd);

// Keeps SIGXFSZ, which ends the process unless somebody handles it, from the calling thread between
// the two calls. The kernel sends it to the thread that grows a file past RLIMIT_FSIZE, beside the
// answer -EFBIG. `ckernel_size_signal_restore` takes back the one that was raised, if it
// `may_be_raised`; one that was pending before stays, and so does the thread's own mask. Darwin
// sends it to the process, which has to ignore it there.
struct ckernel_size_signal {
  sigset_t mask;
  int was_pending;
};

void ckernel_size_signal_block(struct ckernel_size_signal *signal);
void ckernel_size_signal_restore(const struct ckernel_size_signal *signal, int may_be_raised);

// Whether the calling thread masks SIGXFSZ anyway: no system call for a thread that did so before.
int ckernel_masks_size_signal(void);

// fsync(2) and fdatasync(2); on Darwin F_FULLFSYNC for both, as fsync(2) leaves the bytes in the
// memory of the disk there.
int ckernel_fsync(int fd);
int ckernel_fdatasync(int fd);

// posix_fadvise(2). On Darwin F_RDADVISE and F_RDAHEAD; nothing for the others.
enum ckernel_advice {
  ckernel_advice_normal,
  ckernel_advice_sequential,
  ckernel_advice_random,
  ckernel_advice_no_reuse,
  ckernel_advice_will_need,
  ckernel_advice_dont_need,
};
int ckernel_advise(int fd, int64_t offset, int64_t length, enum ckernel_advice advice);

// fallocate(2). With mode 0: room on the disk, and the file's size raised to cover it. Past
// RLIMIT_FSIZE it answers -EFBIG, and the calling thread gets no SIGXFSZ, whatever its mask.
extern const int ckernel_falloc_punch_hole;
extern const int ckernel_falloc_zero_range;
extern const int ckernel_falloc_collapse_range;
int ckernel_fallocate(int fd, int mode, int64_t offset, int64_t length);

// preadv2(2) and pwritev2(2) with an array of struct iovec and flags (RWF_*); without flags
// preadv(2) and pwritev(2). On Darwin a write with RWF_DSYNC or RWF_SYNC is followed by
// F_FULLFSYNC, and other flags are refused.
int64_t ckernel_preadv(int fd, const void *vectors, int count, int64_t offset, int flags);
int64_t ckernel_pwritev(int fd, const void *vectors, int count, int64_t offset, int flags);

// pwritev2(2) with RWF_APPEND, which moves the descriptor's file position behind what it wrote.
// Says in `start` where it began; when there is nothing to write, where the file ends. On Darwin
// writev(2) with O_APPEND, for which the file is opened once more by its path.
int64_t ckernel_append(int fd, const void *vectors, int count, int flags, int64_t *start);

// copy_file_range(2).
int64_t ckernel_copy_range(int from, int64_t from_offset, int to, int64_t to_offset, int64_t length);

// FICLONERANGE: the blocks of a range, shared by another file. A length of 0 is up to the end.
int ckernel_clone_range(int from, int64_t from_offset, int64_t length, int to, int64_t to_offset);

// lseek(2) with SEEK_HOLE or SEEK_DATA, which moves the descriptor's file position.
int64_t ckernel_seek(int fd, int64_t offset, int hole);

// F_OFD_SETLK: takes (F_RDLCK, F_WRLCK) or gives back (F_UNLCK) a lock of the open file on a range,
// up to any end of the file when the length is 0. Does not wait: -EAGAIN when another has it.
int ckernel_lock(int fd, int type, int64_t start, int64_t length);

// renameat2(2): over what is there, or, when exclusive, only where nothing is (-EEXIST).
int ckernel_rename(int from, const char *old_name, int to, const char *new_name, int exclusive);

// Gives the file of a descriptor a name, which nothing must have: linkat(2) through /proc/self/fd.
int ckernel_link(int fd, int directory, const char *name);

// ftruncate(2), without SIGXFSZ, like ckernel_fallocate.
int ckernel_ftruncate(int fd, int64_t size);

// A request of kernel AIO: struct iocb of linux/aio_abi.h, as it is on the machines above. Declared
// here so that what fills one compiles where that header is not.
struct ckernel_control_block {
  uint64_t data;  // comes back with the completion
  uint32_t key;   // the kernel's
  uint32_t rw_flags;
  uint16_t opcode;
  int16_t priority;
  int32_t descriptor;
  uint64_t memory;  // of a poll: what it waits for
  uint64_t count;
  int64_t offset;
  uint64_t reserved;
  uint32_t flags;  // 1 (IOCB_FLAG_RESFD): event counts the completion
  uint32_t event;
};

// A completion: struct io_event.
struct ckernel_completion {
  uint64_t data;
  uint64_t control_block;
  int64_t result;  // a count, or -errno
  int64_t reserved;
};

#ifdef __linux__
// Moves up to `capacity` completions from the ring of a kernel AIO context (what io_setup gave) to
// `events`, in user space, as the kernel allows to the one thread that reaps. Answers how many, or
// -1 when the ring is not of the make that is known here.
int ckernel_aio_ring_reap(void *context, struct ckernel_completion *events, uint32_t capacity);
#endif

// Whether all pages of a piece of memory of up to 8 MiB are there (mincore(2)): 1 or 0. A page that
// was never touched is not.
int ckernel_is_resident(const void *base, uintptr_t length);

// Tells the Thread Sanitizer, where there is one, that what came before the one call in its thread
// has happened when the other, with the same number, returns. Nothing without a sanitizer.
void ckernel_happens_before(uintptr_t identity);
void ckernel_happens_after(uintptr_t identity);

#endif

/* Tells a log what a process does to the files below POWER_DIR, so that power.py can say what a loss of power
   would have left of them. Preloaded. Writes are told before they are done, syncs after; with POWER_UNSYNCED syncs
   are not told at all.

   A record: u64 nanoseconds | u32 process | i32 descriptor | u32 kind | u32 flags | u64 offset | u32 path bytes |
   u32 data bytes | path | data. Of a sync the time is when it began. */

#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "shim.h"

enum { OPEN = 1, WRITE, TRUNCATE, ALLOCATE, SYNC, RENAME, UNLINK, MKDIR, CLOSE };

struct record {
  uint64_t time;
  uint32_t process;
  int32_t descriptor;
  uint32_t kind, flags;
  uint64_t offset;
  uint32_t path_bytes, data_bytes;
} __attribute__((packed));

static unsigned char appending[DESCRIPTORS];

static uint64_t now(void) {
  struct timespec at;
  clock_gettime(CLOCK_MONOTONIC, &at);
  return (uint64_t)at.tv_sec * 1000000000u + (uint64_t)at.tv_nsec;
}

static int is_below(const char *path) {
  return is_under("POWER_DIR", path);
}

static int log_descriptor(void) {
  static int fd = -1;
  static pid_t of;
  if (fd < 0 || of != getpid()) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s.%d", getenv("POWER_LOG"), (int)getpid());
    of = getpid();
    fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  }
  return fd;
}

static void tell(uint64_t time, int kind, int fd, unsigned flags, uint64_t offset, const char *path,
                 const struct iovec *data, int count) {
  struct iovec parts[PIECES + 2];
  struct record record = {time, (uint32_t)getpid(), fd, (uint32_t)kind, flags, offset, 0, 0};
  int kept = errno;
  if (count > PIECES) abort();
  record.path_bytes = path ? (uint32_t)strlen(path) : 0;
  parts[0] = (struct iovec){&record, sizeof record};
  parts[1] = (struct iovec){(void *)path, record.path_bytes};
  for (int at = 0; at < count; at++) {
    parts[2 + at] = data[at];
    record.data_bytes += (uint32_t)data[at].iov_len;
  }
  /* One call, so that threads and a SIGKILL leave whole records. */
  if (syscall(SYS_writev, log_descriptor(), parts, 2 + count) < 0) abort();
  errno = kept;
}

static int opened(int dir, const char *path, int flags, mode_t mode) {
  int below = dir == AT_FDCWD && is_below(path);
  int existed = below && !syscall(SYS_faccessat, AT_FDCWD, path, F_OK);
  uint64_t time = now();
  int fd = (int)syscall(SYS_openat, dir, path, flags, mode);
  if (fd >= 0 && fd < DESCRIPTORS) {
    ours[fd] = (unsigned char)below;
    appending[fd] = (flags & O_APPEND) != 0;
    if (below) tell(time, OPEN, fd, (flags & O_TRUNC ? 1u : 0u) | (existed ? 0u : 2u), 0, path, NULL, 0);
  }
  return fd;
}

static uint64_t position(int fd) {
  struct stat there;
  if (appending[fd] && !fstat(fd, &there)) return (uint64_t)there.st_size;
  return (uint64_t)syscall(SYS_lseek, fd, 0, SEEK_CUR);
}

ssize_t write(int fd, const void *bytes, size_t count) {
  struct iovec data = {(void *)bytes, count};
  if (is_ours(fd)) tell(now(), WRITE, fd, 0, position(fd), NULL, &data, 1);
  return syscall(SYS_write, fd, bytes, count);
}

ssize_t writev(int fd, const struct iovec *data, int count) {
  if (is_ours(fd)) tell(now(), WRITE, fd, 0, position(fd), NULL, data, count);
  return syscall(SYS_writev, fd, data, count);
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t offset) {
  struct iovec data = {(void *)bytes, count};
  if (is_ours(fd)) tell(now(), WRITE, fd, 0, (uint64_t)offset, NULL, &data, 1);
  return syscall(SYS_pwrite64, fd, bytes, count, offset);
}
ssize_t pwrite(int fd, const void *bytes, size_t count, off_t offset) { return pwrite64(fd, bytes, count, offset); }

ssize_t pwritev64v2(int fd, const struct iovec *data, int count, off64_t offset, int flags) {
  if (is_ours(fd)) tell(now(), WRITE, fd, 0, (uint64_t)offset, NULL, data, count);
  return syscall(SYS_pwritev2, fd, data, count, offset, 0, flags);
}
ssize_t pwritev2(int fd, const struct iovec *data, int count, off_t offset, int flags) {
  return pwritev64v2(fd, data, count, offset, flags);
}
ssize_t pwritev64(int fd, const struct iovec *data, int count, off64_t offset) {
  if (is_ours(fd)) tell(now(), WRITE, fd, 0, (uint64_t)offset, NULL, data, count);
  return syscall(SYS_pwritev, fd, data, count, offset, 0);
}
ssize_t pwritev(int fd, const struct iovec *data, int count, off_t offset) {
  return pwritev64(fd, data, count, offset);
}

int ftruncate64(int fd, off64_t size) {
  if (is_ours(fd)) tell(now(), TRUNCATE, fd, 0, (uint64_t)size, NULL, NULL, 0);
  return (int)syscall(SYS_ftruncate, fd, size);
}
int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }

int fallocate64(int fd, int mode, off64_t offset, off64_t length) {
  if (is_ours(fd) && !mode) tell(now(), ALLOCATE, fd, 0, (uint64_t)(offset + length), NULL, NULL, 0);
  return (int)syscall(SYS_fallocate, fd, mode, offset, length);
}
int fallocate(int fd, int mode, off_t offset, off_t length) { return fallocate64(fd, mode, offset, length); }
int posix_fallocate64(int fd, off64_t offset, off64_t length) {
  int kept = errno;
  int result = fallocate64(fd, 0, offset, length) ? errno : 0;
  errno = kept;
  return result;
}
int posix_fallocate(int fd, off_t offset, off_t length) { return posix_fallocate64(fd, offset, length); }

static int synced(int fd, long number) {
  uint64_t time = now();
  int result = (int)syscall(number, fd);
  if (!result && is_ours(fd) && !getenv("POWER_UNSYNCED")) tell(time, SYNC, fd, 0, 0, NULL, NULL, 0);
  return result;
}
int fsync(int fd) { return synced(fd, SYS_fsync); }
int fdatasync(int fd) { return synced(fd, SYS_fdatasync); }

static void tell_of_names(int kind, const char *path, const char *other) {
  struct iovec data = {(void *)other, other ? strlen(other) : 0};
  tell(now(), kind, -1, 0, 0, path, &data, 1);
}

int renameat(int from, const char *old, int to, const char *new) {
  if (from == AT_FDCWD && to == AT_FDCWD && is_below(old)) tell_of_names(RENAME, old, new);
  return (int)syscall(SYS_renameat, from, old, to, new);
}
int rename(const char *old, const char *new) { return renameat(AT_FDCWD, old, AT_FDCWD, new); }

int unlinkat(int dir, const char *path, int flags) {
  if (dir == AT_FDCWD && is_below(path)) tell_of_names(UNLINK, path, NULL);
  return (int)syscall(SYS_unlinkat, dir, path, flags);
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }

int mkdirat(int dir, const char *path, mode_t mode) {
  int result = (int)syscall(SYS_mkdirat, dir, path, mode);
  if (!result && dir == AT_FDCWD && is_below(path)) tell_of_names(MKDIR, path, NULL);
  return result;
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

int close(int fd) {
  if (is_ours(fd)) tell(now(), CLOSE, fd, 0, 0, NULL, NULL, 0);
  if (fd >= 0 && fd < DESCRIPTORS) ours[fd] = 0;
  return (int)syscall(SYS_close, fd);
}

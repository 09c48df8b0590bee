/* Makes one call that concerns a file below ERRNOS_DIR fail, or come back short: which, says the file ERRNOS_CONTROL,
   which errnos.py and all processes have in memory. Preloaded, in front of power.c if that is there too.

   A file whose sync failed is as Linux leaves it: what was written is clean in memory and nowhere else, so every
   later sync of it succeeds and does nothing. (After EINTR it is still dirty.) */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#include "shim.h"

enum { PWRITEV = 1, WRITE, FDATASYNC, FSYNC, OPENAT, FALLOCATE, FTRUNCATE, RENAME, UNLINK, PREAD, READ };
enum { FORGOTTEN = 1024 };
enum { NOTHING = -1, SHORT = 0 };

/* As in errnos.py. */
struct control {
  atomic_int call, left, error, struck;
};

static struct control *control;
static struct { dev_t device; ino_t file; } forgotten[FORGOTTEN];
static atomic_int forgotten_count;

#define NEXT(name) ({ \
  static __typeof__(&name) next; \
  if (!next) next = (__typeof__(&name))dlsym(RTLD_NEXT, #name); \
  next; })

__attribute__((constructor)) static void begin(void) {
  const char *path = getenv("ERRNOS_CONTROL");
  int fd = path ? NEXT(open64)(path, O_RDWR | O_CLOEXEC) : -1;
  if (fd < 0) return;
  void *memory = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  NEXT(close)(fd);
  if (memory == MAP_FAILED) abort();
  control = memory;
}

static int is_below(const char *path) {
  return control && is_under("ERRNOS_DIR", path);
}

/* What this call, one of ours, is to end in: NOTHING, SHORT, or an errno. */
static int fault(int call) {
  if (atomic_load(&control->call) != call || atomic_fetch_sub(&control->left, 1) != 1) return NOTHING;
  atomic_fetch_add(&control->struck, 1);
  return atomic_load(&control->error);
}

static int fails(int call) {
  int error = fault(call);
  if (error <= SHORT) return 0;
  errno = error;
  return 1;
}

static size_t cut(int call, size_t count, int *failed) {
  int error = fault(call);
  *failed = error > SHORT;
  if (*failed) errno = error;
  return error == SHORT && count > 1 ? count / 2 : count;
}

/* Half of what there is, across the pieces; returns how many pieces that is. */
static int cut_pieces(const struct iovec *data, int count, struct iovec *some) {
  size_t whole = 0, half;
  int at = 0;
  for (int each = 0; each < count; each++) whole += data[each].iov_len;
  for (half = whole > 1 ? whole / 2 : whole; half && at < count; at++) {
    some[at] = data[at];
    if (some[at].iov_len > half) some[at].iov_len = half;
    half -= some[at].iov_len;
  }
  return at;
}

static int was_forgotten(int fd, int forget) {
  struct stat there;
  int count = atomic_load(&forgotten_count);
  if (fstat(fd, &there) || !S_ISREG(there.st_mode)) return 0;
  for (int at = 0; at < count; at++) {
    if (forgotten[at].device == there.st_dev && forgotten[at].file == there.st_ino) return 1;
  }
  if (forget) {
    if (count == FORGOTTEN) abort();
    forgotten[count].device = there.st_dev;
    forgotten[count].file = there.st_ino;
    atomic_store(&forgotten_count, count + 1);
  }
  return 0;
}

/* The number of a file that is gone is given to a new one. */
static void remember(int fd) {
  struct stat there;
  if (!atomic_load(&forgotten_count) || fstat(fd, &there)) return;
  for (int at = 0; at < atomic_load(&forgotten_count); at++) {
    if (forgotten[at].device == there.st_dev && forgotten[at].file == there.st_ino) forgotten[at].file = 0;
  }
}

static int opened(int dir, const char *path, int flags, mode_t mode) {
  int below = dir == AT_FDCWD && is_below(path);
  if (below && fails(OPENAT)) return -1;
  int fd = NEXT(openat64)(dir, path, flags, mode);
  if (fd >= 0 && fd < DESCRIPTORS) {
    ours[fd] = (unsigned char)below;
    if (below && flags & O_CREAT) remember(fd);
  }
  return fd;
}

int close(int fd) {
  if (fd >= 0 && fd < DESCRIPTORS) ours[fd] = 0;
  return NEXT(close)(fd);
}

ssize_t write(int fd, const void *bytes, size_t count) {
  int failed = 0;
  if (is_ours(fd)) count = cut(WRITE, count, &failed);
  return failed ? -1 : NEXT(write)(fd, bytes, count);
}

ssize_t writev(int fd, const struct iovec *data, int count) {
  struct iovec some[PIECES];
  int error = is_ours(fd) ? fault(WRITE) : NOTHING;
  if (error > SHORT) return errno = error, -1;
  if (error == NOTHING) return NEXT(writev)(fd, data, count);
  count = cut_pieces(data, count, some);
  return NEXT(writev)(fd, some, count);
}

ssize_t pwritev64v2(int fd, const struct iovec *data, int count, off64_t offset, int flags) {
  struct iovec some[PIECES];
  int error = is_ours(fd) ? fault(PWRITEV) : NOTHING;
  if (error > SHORT) return errno = error, -1;
  if (error == NOTHING) return NEXT(pwritev64v2)(fd, data, count, offset, flags);
  count = cut_pieces(data, count, some);
  return NEXT(pwritev64v2)(fd, some, count, offset, flags);
}
ssize_t pwritev2(int fd, const struct iovec *data, int count, off_t offset, int flags) {
  return pwritev64v2(fd, data, count, offset, flags);
}
ssize_t pwritev64(int fd, const struct iovec *data, int count, off64_t offset) {
  return pwritev64v2(fd, data, count, offset, 0);
}
ssize_t pwritev(int fd, const struct iovec *data, int count, off_t offset) {
  return pwritev64v2(fd, data, count, offset, 0);
}

ssize_t read(int fd, void *bytes, size_t count) {
  int failed = 0;
  if (is_ours(fd)) count = cut(READ, count, &failed);
  return failed ? -1 : NEXT(read)(fd, bytes, count);
}

ssize_t pread64(int fd, void *bytes, size_t count, off64_t offset) {
  int failed = 0;
  if (is_ours(fd)) count = cut(PREAD, count, &failed);
  return failed ? -1 : NEXT(pread64)(fd, bytes, count, offset);
}
ssize_t pread(int fd, void *bytes, size_t count, off_t offset) { return pread64(fd, bytes, count, offset); }

static int synced(int fd, int call, int (*sync)(int)) {
  int failed = is_ours(fd) && fails(call);
  if (failed && errno == EINTR) return -1;
  if (failed) {
    int error = errno;
    was_forgotten(fd, 1);
    errno = error;
    return -1;
  }
  return is_ours(fd) && was_forgotten(fd, 0) ? 0 : sync(fd);
}
int fsync(int fd) { return synced(fd, FSYNC, NEXT(fsync)); }
int fdatasync(int fd) { return synced(fd, FDATASYNC, NEXT(fdatasync)); }

int posix_fallocate64(int fd, off64_t offset, off64_t length) {
  int kept = errno;
  if (is_ours(fd) && fails(FALLOCATE)) {
    int error = errno;
    errno = kept;
    return error;
  }
  return NEXT(posix_fallocate64)(fd, offset, length);
}
int posix_fallocate(int fd, off_t offset, off_t length) { return posix_fallocate64(fd, offset, length); }

int ftruncate64(int fd, off64_t size) {
  return is_ours(fd) && fails(FTRUNCATE) ? -1 : NEXT(ftruncate64)(fd, size);
}
int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }

int rename(const char *old, const char *new) {
  return is_below(old) && fails(RENAME) ? -1 : NEXT(rename)(old, new);
}

int unlink(const char *path) { return is_below(path) && fails(UNLINK) ? -1 : NEXT(unlink)(path); }

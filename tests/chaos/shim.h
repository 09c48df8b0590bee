/* What the preloaded shims share: which descriptors are of files below a directory, and every way to open one. Who
   includes it defines _GNU_SOURCE before, and `opened`. */

#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

enum { DESCRIPTORS = 65536, PIECES = 1024 };

static unsigned char ours[DESCRIPTORS];

static int is_ours(int fd) { return fd >= 0 && fd < DESCRIPTORS && ours[fd]; }

/* Whether a path is below the directory that the environment names. */
static int is_under(const char *variable, const char *path) {
  const char *top = getenv(variable);
  size_t length = top ? strlen(top) : 0;
  return length && path && !strncmp(path, top, length) && (path[length] == '/' || !path[length]);
}

static int opened(int dir, const char *path, int flags, mode_t mode);

#define WITH_MODE(last) \
  mode_t mode = 0; \
  if (flags & (O_CREAT | O_TMPFILE)) { \
    va_list rest; \
    va_start(rest, last); \
    mode = va_arg(rest, mode_t); \
    va_end(rest); \
  }

int open(const char *path, int flags, ...) { WITH_MODE(flags) return opened(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { WITH_MODE(flags) return opened(AT_FDCWD, path, flags, mode); }
int openat(int dir, const char *path, int flags, ...) { WITH_MODE(flags) return opened(dir, path, flags, mode); }
int openat64(int dir, const char *path, int flags, ...) { WITH_MODE(flags) return opened(dir, path, flags, mode); }

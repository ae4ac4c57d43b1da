/* Faults for the files of one directory, under a real SQLite: kill, tear, shorten or fail the n-th call that changes something.
   Loaded with LD_PRELOAD; `shim_arm` says where, when and what, `shim_count` how many calls there were. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum mode { COUNT, KILL, TORN, SHORT, FAIL_ONCE, FAIL_ALL, NO_ROOM };
static char root[4096];
static int at, mode, code, count, freed; /* freed: the reserve was given up */

void shim_arm(const char *directory, int number, int what, int error) {
    strncpy(root, directory, sizeof root - 1);
    at = number; mode = what; code = error; count = freed = 0;
}
int shim_count(void) { return count; }

static int ours(const char *path) {
    size_t length = strlen(path);
    return root[0] && !strncmp(path, root, strlen(root)) && !(length > 4 && !strcmp(path + length - 4, "-shm"));
}
static int ours_fd(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    return ours(path);
}
/* 0: do it, -1: fail, 1: only a part of it, then die, 2: only a part of it */
static int strike_at(int writes, int needs_room) {
    count++;
    if (mode == NO_ROOM) {
        if (count < at || freed || !needs_room) return 0;
        errno = code;
        return -1;
    }
    if (mode == COUNT || count < at || (count > at && mode != FAIL_ALL)) return 0;
    if (mode == KILL) kill(getpid(), SIGKILL);
    if (mode == FAIL_ONCE || mode == FAIL_ALL) { errno = code; return -1; }
    return !writes ? 0 : mode == TORN ? 1 : 2;
}
static int strike(int writes) { return strike_at(writes, 0); }
#define REAL(name, type, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

#define PWRITE(name, offset_type) \
    ssize_t name(int fd, const void *data, size_t size, offset_type offset) { \
        REAL(#name, ssize_t, int, const void *, size_t, offset_type); \
        int what = ours_fd(fd) ? strike_at(size > 1, 1) : 0; \
        if (what < 0) return -1; \
        if (what) size /= 2; \
        ssize_t done = real(fd, data, size, offset); \
        if (what == 1) kill(getpid(), SIGKILL); \
        return done; \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

#define PWRITEV(name, offset_type) \
    ssize_t name(int fd, const struct iovec *data, int pieces, offset_type offset) { \
        REAL(#name, ssize_t, int, const struct iovec *, int, offset_type); \
        return ours_fd(fd) && strike_at(0, 1) < 0 ? -1 : real(fd, data, pieces, offset); \
    }
PWRITEV(pwritev, off_t)
PWRITEV(pwritev64, off64_t)

ssize_t write(int fd, const void *data, size_t size) {
    REAL("write", ssize_t, int, const void *, size_t);
    int what = ours_fd(fd) ? strike_at(size > 1, 1) : 0;
    if (what < 0) return -1;
    if (what) size /= 2;
    ssize_t done = real(fd, data, size);
    if (what == 1) kill(getpid(), SIGKILL);
    return done;
}
#define ON_FD(name, ...) \
    int name(int fd) { \
        REAL(#name, int, int); \
        return ours_fd(fd) && strike(0) < 0 ? -1 : real(fd); \
    }
ON_FD(fsync)
ON_FD(fdatasync)

#define TRUNCATE(name, offset_type) \
    int name(int fd, offset_type length) { \
        REAL(#name, int, int, offset_type); \
        return ours_fd(fd) && strike(0) < 0 ? -1 : real(fd, length); \
    }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)

int unlink(const char *path) {
    REAL("unlink", int, const char *);
    if (ours(path) && strlen(path) > 7 && !strcmp(path + strlen(path) - 7, "reserve")) freed = 1;
    return ours(path) && strike(0) < 0 ? -1 : real(path);
}
int rename(const char *old, const char *new) {
    REAL("rename", int, const char *, const char *);
    return ours(old) && strike(0) < 0 ? -1 : real(old, new);
}
#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(#name, int, const char *, int, ...); \
        va_list arguments; \
        va_start(arguments, flags); \
        mode_t permissions = flags & O_CREAT ? va_arg(arguments, mode_t) : 0; \
        va_end(arguments); \
        int creates = (flags & O_CREAT) && ours(path) && access(path, F_OK); \
        return creates && strike_at(0, 1) < 0 ? -1 : real(path, flags, permissions); \
    }
OPEN(open)
OPEN(open64)

/* A library for LD_PRELOAD that lets calls on files below one directory fail, or that kills the process at one of them.

   FAULTS_UNDER   the directory's name: calls on paths that contain it are looked at, others never.
   FAULTS_CALLS   names of calls, separated by commas: each of them fails, always.
   FAULTS_AT      a number: that one, counted from 1, of all calls that change something fails; 0 only counts.
   FAULTS_ERRNO   what a failing call answers; 0 stands for SIGKILL before it.
   FAULTS_COUNT   a file to write the number of such calls to. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static int is_under(const char *path) {
    const char *under = getenv("FAULTS_UNDER");
    return under && path && strstr(path, under);
}

static int is_open_under(int file) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return is_under(path);
}

static int is_named(const char *call) {
    const char *calls = getenv("FAULTS_CALLS");
    size_t length = strlen(call);
    for (const char *at = calls; at && *at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL)
        if (!strncmp(at, call, length) && (!at[length] || at[length] == ',')) return 1;
    return 0;
}

/* Whether the call is to fail, with errno set. `changes`: whether it is one of those that are counted. */
static int fails(const char *call, int is_ours, int changes) {
    static int count;
    if (!is_ours) return 0;
    int fault = is_named(call);
    const char *at = getenv("FAULTS_AT"), *log = getenv("FAULTS_COUNT");
    if (changes && at) {
        count++;
        if (count == atoi(at)) fault = 1;
        if (log) {
            int file = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_TRUNC, 0666);
            dprintf(file, "%d", count);
            syscall(SYS_close, file);
        }
    }
    if (!fault) return 0;
    const char *number = getenv("FAULTS_ERRNO");
    if (!number || !atoi(number)) kill(getpid(), SIGKILL);
    errno = atoi(number);
    return 1;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int symlink(const char *to, const char *path) {
    return fails("symlink", is_under(path), 1) ? -1 : NEXT(symlink)(to, path);
}
int rename(const char *from, const char *to) { return fails("rename", is_under(to), 1) ? -1 : NEXT(rename)(from, to); }
int unlink(const char *path) { return fails("unlink", is_under(path), 1) ? -1 : NEXT(unlink)(path); }
int rmdir(const char *path) { return fails("rmdir", is_under(path), 1) ? -1 : NEXT(rmdir)(path); }
int mkdir(const char *path, mode_t mode) { return fails("mkdir", is_under(path), 1) ? -1 : NEXT(mkdir)(path, mode); }
int chmod(const char *path, mode_t mode) { return fails("chmod", is_under(path), 1) ? -1 : NEXT(chmod)(path, mode); }
int flock(int file, int how) { return fails("flock", is_open_under(file), 0) ? -1 : NEXT(flock)(file, how); }
int ftruncate(int file, off_t size) {
    return fails("ftruncate", is_open_under(file), 1) ? -1 : NEXT(ftruncate)(file, size);
}
int utimensat(int directory, const char *path, const struct timespec times[2], int flags) {
    return fails("utime", is_under(path), 1) ? -1 : NEXT(utimensat)(directory, path, times, flags);
}
int fsync(int file) {
    struct stat found;
    int is_directory = !fstat(file, &found) && S_ISDIR(found.st_mode);
    return fails(is_directory ? "fsync_directory" : "fsync", is_open_under(file), 1) ? -1 : NEXT(fsync)(file);
}
ssize_t write(int file, const void *data, size_t size) {
    return fails("write", is_open_under(file), 1) ? -1 : NEXT(write)(file, data, size);
}
static int opened(const char *path, int flags, mode_t mode) {
    if (fails("open", is_under(path), flags & (O_CREAT | O_TRUNC))) return -1;
    return ((int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open64"))(path, flags, mode);
}
#define OPEN(name)                                     \
    int name(const char *path, int flags, ...) {       \
        va_list rest;                                  \
        va_start(rest, flags);                         \
        mode_t mode = va_arg(rest, mode_t);            \
        va_end(rest);                                  \
        return opened(path, flags, mode);              \
    }
OPEN(open)
OPEN(open64)
void *mmap(void *at, size_t size, int access, int flags, int file, off_t offset) {
    return fails("mmap", file >= 0 && is_open_under(file), 0)
               ? MAP_FAILED
               : NEXT(mmap)(at, size, access, flags, file, offset);
}
void *mmap64(void *at, size_t size, int access, int flags, int file, off_t offset) {
    return mmap(at, size, access, flags, file, offset);
}

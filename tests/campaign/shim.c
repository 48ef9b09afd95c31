// Sees every system call of one process that touches files under a folder, and kills, fails, delays or records there.
//
// A seccomp filter traps these calls, including raw ones that bypass the C library. The handler of SIGSYS then makes the
// call for the process. The handler uses nothing of the C library, because the signal may come in the middle of any of
// its functions. Works on Linux on x86-64.
//
// It begins when the library is loaded, by LD_PRELOAD or later, and reads its orders from the environment:
//   CAMPAIGN_ROOT     the folder; print is any write to standard output or standard error
//   CAMPAIGN_CALLS    the calls that are counted, as in " rename fsync "
//   CAMPAIGN_AT       the number of the one at which to act, from 1; 0: never
//   CAMPAIGN_DO       kill: die by SIGKILL in place of the call; half: die once half of the bytes are written;
//                     ERRNO: fail with it; -ERRNO: fail with it from here on; delay MS: sleep first
//   CAMPAIGN_JOURNAL  a file that gets a record of each call under the folder, as journal.py reads it
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

enum { PATH = 4096, JOURNAL = 900, LARGEST = 1 << 26 };

// How a call names its file: by descriptor (its argument 0), by path, or by a folder's descriptor and a path.
// `data` calls change a file's content. The second path of rename, link and symlink follows the first.
static const struct call {
    int number;
    const char *name;
    enum { BY_FD, BY_PATH, BY_AT, BY_FD_4 } by;
    int first, second;  // arguments that hold paths; -1: none
    int data;
} CALLS[] = {
    {SYS_open, "open", BY_PATH, 0, -1, 0}, {SYS_openat, "open", BY_AT, 1, -1, 0},
    {SYS_creat, "open", BY_PATH, 0, -1, 0},
    {SYS_read, "read", BY_FD, 0, -1, 0}, {SYS_pread64, "read", BY_FD, 0, -1, 0}, {SYS_readv, "read", BY_FD, 0, -1, 0},
    {SYS_write, "write", BY_FD, 0, -1, 1}, {SYS_pwrite64, "write", BY_FD, 0, -1, 1},
    {SYS_writev, "write", BY_FD, 0, -1, 1}, {SYS_ftruncate, "truncate", BY_FD, 0, -1, 1},
    {SYS_sendfile, "copy", BY_FD, 0, -1, 1}, {SYS_copy_file_range, "copy", BY_FD, 2, -1, 1},
    {SYS_fsync, "fsync", BY_FD, 0, -1, 0}, {SYS_fdatasync, "fsync", BY_FD, 0, -1, 0},
    {SYS_flock, "flock", BY_FD, 0, -1, 0}, {SYS_fchmod, "chmod", BY_FD, 0, -1, 0},
    {SYS_chmod, "chmod", BY_PATH, 0, -1, 0}, {SYS_fchmodat, "chmod", BY_AT, 1, -1, 0},
    {SYS_utimensat, "utime", BY_AT, 1, -1, 0}, {SYS_getdents64, "list", BY_FD, 0, -1, 0},
    {SYS_stat, "stat", BY_PATH, 0, -1, 0}, {SYS_lstat, "stat", BY_PATH, 0, -1, 0},
    {SYS_newfstatat, "stat", BY_AT, 1, -1, 0}, {SYS_statx, "stat", BY_AT, 1, -1, 0},
    {SYS_rename, "rename", BY_PATH, 0, 1, 0}, {SYS_renameat, "rename", BY_AT, 1, 3, 0},
    {SYS_renameat2, "rename", BY_AT, 1, 3, 0}, {SYS_link, "link", BY_PATH, 0, 1, 0},
    {SYS_linkat, "link", BY_AT, 1, 3, 0},
    {SYS_symlink, "symlink", BY_PATH, 1, 0, 0}, {SYS_symlinkat, "symlink", BY_AT, 2, 0, 0},
    {SYS_unlink, "unlink", BY_PATH, 0, -1, 0}, {SYS_unlinkat, "unlink", BY_AT, 1, -1, 0},
    {SYS_mkdir, "mkdir", BY_PATH, 0, -1, 0}, {SYS_mkdirat, "mkdir", BY_AT, 1, -1, 0},
    {SYS_rmdir, "rmdir", BY_PATH, 0, -1, 0}, {SYS_mmap, "mmap", BY_FD_4, 4, -1, 0},
};
enum { COUNT = sizeof CALLS / sizeof *CALLS };

static char root[PATH], counted[PATH], cwd[PATH];
static size_t root_length;
static long at, seen, milliseconds;
static int fail_with, forever, half, journal = -1;

// The one instruction whose system calls pass the filter.
long campaign_call(long number, long a, long b, long c, long d, long e, long f);
extern char campaign_after[];
__asm__(".text\n.globl campaign_call\n.hidden campaign_call\n.globl campaign_after\n.hidden campaign_after\n"
        "campaign_call: mov %rdi,%rax\n mov %rsi,%rdi\n mov %rdx,%rsi\n mov %rcx,%rdx\n mov %r8,%r10\n mov %r9,%r8\n"
        " mov 8(%rsp),%r9\n syscall\ncampaign_after: ret\n");
#define CALL(number, a, b, c, d) campaign_call(number, (long)(a), (long)(b), (long)(c), (long)(d), 0, 0)

static size_t length(const char *text) { size_t n = 0; while (text[n]) n++; return n; }

static void append(char *to, const char *text) {
    size_t n = length(to);
    while (*text && n < PATH - 1) to[n++] = *text++;
    to[n] = 0;
}

static void append_number(char *to, long value) {
    char digits[24] = {0}, *p = digits + 23;
    do *--p = '0' + value % 10; while (value /= 10);
    append(to, p);
}

// The path of an open descriptor, as it is called now; "" if it has none (a pipe, a deleted file).
static void path_of(long fd, char *out) {
    char link[64] = "/proc/self/fd/";
    append_number(link, fd);
    long n = CALL(SYS_readlink, link, out, PATH - 1, 0);
    out[n > 0 ? n : 0] = 0;
    if (n > 10 && !__builtin_strcmp(out + n - 10, " (deleted)")) out[0] = 0;
}

static void absolute(const long *args, int argument, int has_folder, char *out) {
    const char *path = (const char *)args[argument];
    out[0] = 0;
    if (!path) return;
    if (path[0] != '/') {
        if (has_folder && (int)args[argument - 1] != AT_FDCWD) path_of(args[argument - 1], out);
        else append(out, cwd);
        if (path[0]) append(out, "/");
    }
    append(out, path);
}

static int is_under_root(const char *path) {
    for (size_t i = 0; i < root_length; i++)
        if (path[i] != root[i]) return 0;
    return path[root_length] == 0 || path[root_length] == '/';
}

static int is_counted(const char *name) {
    size_t n = length(name);
    for (const char *p = counted; *p; p++) {
        size_t i = 0;
        while (i < n && p[i] == name[i]) i++;
        if (i == n && p[-1] == ' ' && p[n] == ' ') return 1;
    }
    return 0;
}

// name NUL first path NUL second path NUL result NUL number of bytes NUL bytes
static void record(const char *name, const char *first, const char *second, long result, const char *data, long count) {
    char number[24] = "", size[24] = "";
    if (result < 0) append(number, "-");
    append_number(number, result < 0 ? -result : result);
    append_number(size, count);
    struct iovec parts[] = {
        {(void *)name, length(name) + 1}, {(void *)first, length(first) + 1}, {(void *)second, length(second) + 1},
        {number, length(number) + 1}, {size, length(size) + 1}, {(void *)data, count},
    };
    CALL(SYS_writev, journal, parts, 6, 0);
}

// Records a file's whole content; `path` may be a descriptor's under /proc.
static void record_content(const char *name, const char *path, long result) {
    long fd = CALL(SYS_open, path, O_RDONLY, 0, 0), count = 0, n;
    char *data = (char *)campaign_call(SYS_mmap, 0, LARGEST, PROT_READ | PROT_WRITE,
                                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    while (fd >= 0 && (n = CALL(SYS_read, fd, data + count, LARGEST - count, 0)) > 0) count += n;
    record(name, path, "", result, data, count);
    CALL(SYS_munmap, data, LARGEST, 0, 0);
    if (fd >= 0) CALL(SYS_close, fd, 0, 0, 0);
}

static void die(void) {
    CALL(SYS_kill, CALL(SYS_getpid, 0, 0, 0, 0), SIGKILL, 0, 0);
    for (;;) CALL(SYS_pause, 0, 0, 0, 0);
}

static long make(const struct call *call, const long *a) {
    return campaign_call(call->number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

// Does the work of one system call in its place: counts it, acts if it is the one, makes it, records it.
static long handle(const struct call *call, const long *args) {
    char first[PATH] = "", second[PATH] = "";
    const char *name = call->name;
    if (call->by == BY_FD || call->by == BY_FD_4) {
        long fd = (int)args[call->first];
        if (fd < 0) return make(call, args);
        if (call->data && (fd == 1 || fd == 2)) name = "print";
        else path_of(fd, first);
    } else {
        absolute(args, call->first, call->by == BY_AT, first);
        if (call->second >= 0 && name[0] == 's') append(second, (const char *)args[call->second]);  // the link's target
        else if (call->second >= 0) absolute(args, call->second, call->by == BY_AT, second);
    }
    int is_print = !__builtin_strcmp(name, "print");
    if (!is_print && !is_under_root(first)) return make(call, args);
    int reads = call->number == SYS_getdents64 || !__builtin_strcmp(name, "stat") || !__builtin_strcmp(name, "open");
    if (reads && !first[root_length]) return make(call, args);  // the folder itself, which Python looks for modules in

    long flags = call->number == SYS_openat ? args[2] : args[1];
    if (call->number == SYS_creat) flags = O_WRONLY | O_CREAT | O_TRUNC;
    int opens = name[0] == 'o', creates = 0, truncates = 0;
    if (opens && (flags & (O_ACCMODE | O_CREAT | O_TRUNC))) {
        name = "create";  // or open for writing
        creates = (flags & O_CREAT) && CALL(SYS_access, first, F_OK, 0, 0) < 0;
        truncates = !creates && (flags & O_TRUNC);
    }
    if (!__builtin_strcmp(name, "fsync") || !__builtin_strcmp(name, "unlink")) {
        struct stat status;
        if (name[0] == 'f' && !CALL(SYS_lstat, first, &status, 0, 0) && S_ISDIR(status.st_mode)) name = "fsyncdir";
        if (call->number == SYS_unlinkat && (args[2] & AT_REMOVEDIR)) name = "rmdir";
    }

    long copy[6];
    for (int i = 0; i < 6; i++) copy[i] = args[i];
    if (is_counted(name)) {
        long number = __atomic_add_fetch(&seen, 1, __ATOMIC_SEQ_CST);
        if (at && (number == at || (forever && number > at))) {
            if (fail_with) {
                if (journal >= 0) record(name, first, second, -fail_with, "", 0);
                return -fail_with;
            }
            if (milliseconds) {
                struct timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000};
                CALL(SYS_nanosleep, &time, 0, 0, 0);
            } else {
                if (half && call->number == SYS_write) copy[2] /= 2, make(call, copy);
                die();
            }
        }
    }
    long result = make(call, copy);
    if (journal < 0) return result;
    if (is_print) {
        record(name, "", "", result, call->number == SYS_write ? (const char *)args[1] : "",
               call->number == SYS_write && result > 0 ? result : 0);
    } else if (call->data) {
        record_content(name, first, result);
    } else if (opens && result >= 0 && creates) {
        record("new", first, "", result, "", 0);
    } else if (opens && result >= 0 && truncates) {
        record_content("write", first, result);
    } else {
        record(name, first, second, result, "", 0);
    }
    return result;
}

static void on_trap(int signal, siginfo_t *info, void *context) {
    (void)signal;
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    long args[6] = {registers[REG_RDI], registers[REG_RSI], registers[REG_RDX],
                    registers[REG_R10], registers[REG_R8], registers[REG_R9]};
    for (int i = 0; i < COUNT; i++)
        if (CALLS[i].number == info->si_syscall) registers[REG_RAX] = handle(&CALLS[i], args);
}

static void copy_variable(const char *name, char *to) {
    const char *value = getenv(name);
    to[0] = 0;
    if (value) append(to, value);
}

// Traps the calls of this thread and those that it starts, by the orders in the environment. Returns 0, or errno.
static int arm(void) {
    char number[PATH], order[PATH], path[PATH];
    copy_variable("CAMPAIGN_ROOT", root);
    copy_variable("CAMPAIGN_CALLS", counted);
    copy_variable("CAMPAIGN_AT", number);
    copy_variable("CAMPAIGN_DO", order);
    copy_variable("CAMPAIGN_JOURNAL", path);
    root_length = length(root);
    at = atol(number), seen = 0;
    half = !strcmp(order, "half");
    milliseconds = strncmp(order, "delay ", 6) ? 0 : atol(order + 6);
    fail_with = abs(atoi(order)), forever = atoi(order) < 0;
    if (!getcwd(cwd, sizeof cwd)) return errno;
    if (path[0]) {
        int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        if (fd < 0 || (journal = dup3(fd, JOURNAL, O_CLOEXEC)) < 0 || close(fd)) return errno;
    }
    struct sigaction action = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigfillset(&action.sa_mask);
    if (sigaction(SIGSYS, &action, 0)) return errno;

    struct sock_filter filter[2 * COUNT + 10];
    int n = 0;
    unsigned long after = (unsigned long)campaign_after;
    enum { POINTER = offsetof(struct seccomp_data, instruction_pointer) };
    filter[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, POINTER);
    filter[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)after, 0, 3);
    filter[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, POINTER + 4);
    filter[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)(after >> 32), 0, 1);
    filter[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    filter[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (int i = 0; i < COUNT; i++) {
        filter[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, CALLS[i].number, 0, 1);
        filter[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP);
    }
    filter[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = {n, filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) return errno;
    return 0;
}

__attribute__((constructor)) static void begin(void) {
    int error = arm();
    if (!error) return;
    dprintf(2, "cannot trap system calls: %s\n", strerror(error));
    _exit(99);
}

/* A wall clock that jumps, for Python only: preloaded, it adds the seconds in the file named by GLSCL_CLOCK (one
   64-bit integer, read at every call) to what the interpreter and its modules are told. Ray's C++ asks the same library
   and gets the real time: its waits are kept by the kernel, whose clock does not jump. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *offset;

__attribute__((constructor)) static void open_offset(void) {
    const char *path = getenv("GLSCL_CLOCK");
    int file = path ? open(path, O_RDONLY) : -1;
    if (file < 0) return;
    void *at = mmap(0, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
    if (at != MAP_FAILED) offset = at;
    close(file);
}

static int64_t jump(void *caller) {
    Dl_info info;
    if (!offset || !*offset || !dladdr(caller, &info) || !info.dli_fname) return 0;
    return strstr(info.dli_fname, "python") && !strstr(info.dli_fname, "site-packages") ? *offset : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int status = (int)syscall(SYS_clock_gettime, clock, now);
    if (!status && clock == CLOCK_REALTIME) now->tv_sec += jump(__builtin_return_address(0));
    return status;
}

int gettimeofday(struct timeval *now, void *zone) {
    (void)zone;
    struct timespec exact;
    syscall(SYS_clock_gettime, CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec + jump(__builtin_return_address(0));
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now) {
    struct timespec exact;
    syscall(SYS_clock_gettime, CLOCK_REALTIME, &exact);
    exact.tv_sec += jump(__builtin_return_address(0));
    if (now) *now = exact.tv_sec;
    return exact.tv_sec;
}

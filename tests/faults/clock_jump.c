/* Preloaded into a real process (ld.so(8), LD_PRELOAD): its wall clock is off by as many seconds as the file named in
 * POLLEN_CLOCK_OFFSET holds (int64), from one call to the next. The monotonic clock is left alone, as by clock_settime(2).
 *
 * Waits until a moment of the wall clock reach the kernel, whose clock hasn't jumped, so they are carried back. What
 * waits already while the clock jumps is not woken; file times stay the kernel's. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* Above any uptime, below any year that a test jumps to: tells a moment of the wall clock from a monotonic one. */
#define WALL_FROM_S 100000000

static const volatile int64_t *offset_s;

__attribute__((constructor)) static void start(void) {
    const char *path = getenv("POLLEN_CLOCK_OFFSET");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *map = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (map != MAP_FAILED)
        offset_s = map;
}

static int64_t offset(void) { return offset_s ? *offset_s : 0; }

static void *next(const char *name, const char *version) {
    void *found = dlvsym(RTLD_NEXT, name, version);
    return found ? found : dlsym(RTLD_NEXT, name);
}

static const struct timespec *kernel_time(const struct timespec *at, struct timespec *room) {
    if (at == NULL || at->tv_sec < WALL_FROM_S)
        return at;
    room->tv_sec = at->tv_sec - offset();
    room->tv_nsec = at->tv_nsec;
    return room;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real)
        real = next("clock_gettime", "GLIBC_2.17");
    int failed = real(clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += offset();
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec found;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &found);
    now->tv_sec = found.tv_sec;
    now->tv_usec = found.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *out) {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    if (out)
        *out = found.tv_sec;
    return found.tv_sec;
}

int pthread_cond_timedwait(pthread_cond_t *restrict cond, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict until) {
    static int (*real)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
    struct timespec room;
    if (!real)
        real = next("pthread_cond_timedwait", "GLIBC_2.3.2");
    return real(cond, mutex, kernel_time(until, &room));
}

int sem_timedwait(sem_t *restrict sem, const struct timespec *restrict until) {
    static int (*real)(sem_t *, const struct timespec *);
    struct timespec room;
    if (!real)
        real = next("sem_timedwait", "GLIBC_2.34");
    return real(sem, kernel_time(until, &room));
}

/* gRPC's futexes. */
long syscall(long number, ...) {
    static long (*real)(long, ...);
    long a[6];
    va_list list;
    va_start(list, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(list, long);
    va_end(list);
    if (!real)
        real = next("syscall", "GLIBC_2.2.5");
    struct timespec room;
    if (number == SYS_futex && (a[1] & FUTEX_CLOCK_REALTIME))
        a[3] = (long)kernel_time((const struct timespec *)a[3], &room);
    return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

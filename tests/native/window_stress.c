/* SPDX-License-Identifier: MIT */
/*
 * Stress of windows and the fault handler without Python, so that threads really run at once.
 *
 * usage: window_stress SECONDS DELAY_US
 *
 * Raw readers touch the window while it is zapped, revived, and its file truncated; guarded readers must
 * see the right value, or find the gate's bits set afterwards. DELAY_US widens the race of a fault and a revive.
 * At the end the file must hold what it held: no handler has written to the "device". Prints one line of figures.
 */
#define _GNU_SOURCE
#include "fault.h"
#include "window.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define SIZE ((size_t)8 << 20)
#define THREADS 4
#define VALUE 0x12345678u
#define ONES 0xFFFFFFFFu
#define DEADLINE (lock_now() + INT64_C(20000000000))

static struct window *window;
static uint8_t *base;
static _Atomic bool stop;
static _Atomic uint64_t raw, raw_ones, guarded, guarded_dead;

/*
 * A read of the device. That mappings change meanwhile is what this is about: ThreadSanitizer, which takes mmap() for a
 * write, is not to look here, but at everything else.
 */
static __attribute__((noinline, no_sanitize("thread"))) uint32_t device_read(size_t offset)
{
    return *(volatile uint32_t *)(base + offset);
}

static void fail(const char *why, uint64_t value)
{
    printf("FAILED: %s (0x%lx)\n", why, value);
    exit(1);
}

/* Two processors may have to do: let others run now and then, the one that zaps above all. */
static void breathe(uint64_t *count)
{
    if (++*count % 1024 == 0)
        nanosleep(&(struct timespec){0, 50000}, NULL);
}

static void *raw_reader(void *seed_)
{
    unsigned seed = (unsigned)(uintptr_t)seed_;
    uint64_t count = 0;

    while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
        size_t offset = (size_t)rand_r(&seed) % (SIZE / 4) * 4;

        breathe(&count);
        uint32_t value = device_read(offset);

        if (value != VALUE && value != ONES)
            fail("raw read", value);
        atomic_fetch_add_explicit(value == VALUE ? &raw : &raw_ones, 1, memory_order_relaxed);
    }
    return NULL;
}

static void *guarded_reader(void *seed_)
{
    unsigned seed = (unsigned)(uintptr_t)seed_;
    uint64_t count = 0;

    while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
        size_t offset = (size_t)rand_r(&seed) % (SIZE / 4) * 4;
        struct reader_slot *slot;

        breathe(&count);
        if (lock_enter(&window->lock, &slot) != LOCK_ENTERED) {
            lock_relax();
            continue;
        }
        uint32_t value = device_read(offset);
        uint32_t gate = atomic_load(&window->lock.gate) & ~GATE_WRITER;

        lock_leave(&window->lock, slot);
        if (value != VALUE && gate == 0)
            fail("guarded read, and nobody said so", value);
        if (value != VALUE && value != ONES)
            fail("guarded read", value);
        atomic_fetch_add_explicit(gate == 0 ? &guarded : &guarded_dead, 1, memory_order_relaxed);
    }
    return NULL;
}

static void expect(int result, const char *what)
{
    if (result != 0)
        fail(what, (uint64_t)-result);
}

static void check_file(int fd, const char *when)
{
    static uint32_t content[SIZE / 4];

    if (pread(fd, content, SIZE, 0) != (ssize_t)SIZE)
        fail("pread", (uint64_t)errno);
    for (size_t i = 0; i < SIZE / 4; i++)
        if (content[i] != VALUE)
            fail(when, content[i]);
}

/* Live areas may be read meanwhile: the file must grow with its content in it. */
static void fill(int fd)
{
    static uint32_t content[SIZE / 4];

    for (size_t i = 0; i < SIZE / 4; i++)
        content[i] = VALUE;
    if (pwrite(fd, content, SIZE, 0) != (ssize_t)SIZE)
        fail("pwrite", (uint64_t)errno);
}

/* One zap and revive; every eighth time the device "goes off" for real while it is live. */
static void cycle(int fd, unsigned *seed, uint64_t count)
{
    int64_t deadline = DEADLINE;

    if (count % 8 == 7) {
        if (ftruncate(fd, 0) != 0)
            fail("ftruncate", (uint64_t)errno);
        (void)device_read((size_t)rand_r(seed) % (SIZE / 4) * 4);
        if (atomic_load(&window->flag) == FLAG_NONE)
            fail("a bus error without a flag", 0);
    }
    expect(lock_write_begin(&window->lock, deadline), "begin");
    expect(lock_write_drain(&window->lock, deadline), "drain");
    if (count % 16 != 15) /* the other times a flagged live window is revived without a zap */
        expect(window_zap(window, 1), "zap");
    nanosleep(&(struct timespec){0, 200000}, NULL);
    for (int i = 0; i < 3; i++)
        if (device_read((size_t)rand_r(seed) % (SIZE / 4) * 4) != ONES && count % 16 != 15)
            fail("zapped memory is not ones", 0);
    if (count % 8 == 7)
        fill(fd);
    expect(window_revive(window, fd, deadline), "revive");
    if (atomic_load(&window->flag) != FLAG_NONE || atomic_load(&window->lock.gate) != GATE_WRITER)
        fail("flagged after a revive", atomic_load(&window->lock.gate));
    for (int i = 0; i < 16; i++) {
        uint32_t value = device_read((size_t)rand_r(seed) % (SIZE / 4) * 4);

        if (value != VALUE)
            fail("stale after a revive", value);
    }
    expect(lock_write_end(&window->lock), "end");
}

int main(int argc, char **argv)
{
    int fd = memfd_create("bar", MFD_CLOEXEC);
    pthread_t threads[THREADS];
    unsigned seed = 1;
    uint64_t cycles = 0;

    if (argc != 3)
        fail("usage: window_stress SECONDS DELAY_US", 0);
    fill(fd);
    if (fault_assert() != 1)
        fail("handler", 0);
    expect(window_open(SIZE, WINDOW_GRANULE, &window), "open");
    base = (uint8_t *)atomic_load(&window->base);
    for (size_t place = 0; place < SIZE; place += SIZE / 4) {
        struct area area = {place, SIZE / 4, (int64_t)place, PROT_READ | PROT_WRITE};

        expect(window_map(window, &area, fd), "map");
    }
    fault_set_delay((uint32_t)atoi(argv[2]));
    for (uintptr_t i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, i % 2 == 0 ? raw_reader : guarded_reader, (void *)(i + 10));

    int64_t end = lock_now() + (int64_t)(atof(argv[1]) * 1e9);

    while (lock_now() < end) {
        cycle(fd, &seed, cycles++);
        check_file(fd, "the device was written to");
    }
    atomic_store(&stop, true);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    struct fault_stats stats = fault_stats();

    printf("cycles %lu raw %lu ones %lu guarded %lu dead %lu served %lu retried %lu\n", cycles, raw, raw_ones, guarded,
           guarded_dead, stats.served, stats.retried);
    if (stats.chained != 0 || raw_ones == 0 || guarded == 0)
        fail("the test did not test", stats.chained);
    expect(window_close(window), "close");
    window_discard(window);
    return 0;
}

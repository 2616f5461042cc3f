/* SPDX-License-Identifier: MIT */
/* The memory lock, as the extension has it, beside pthread_rwlock: read side, and how long a writer waits. */
#define _GNU_SOURCE
#include "../../_cdefs/mmio/lock.c"
#include "../../_cdefs/mmio/reader.c"

#include <stdio.h>

#define READS_PER_HOLD 16
#define MAX_READERS 128

static struct memory_lock slots;
static pthread_rwlock_t rwlock;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static _Atomic bool stop;
static volatile uint32_t registers[READS_PER_HOLD];

static void setup(void)
{
    pthread_rwlockattr_t attributes;

    lock_init(&slots);
    pthread_rwlockattr_init(&attributes);
    pthread_rwlockattr_setkind_np(&attributes, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(&rwlock, &attributes);
}

/* ---- one read section ---- */

static inline void slots_enter(struct reader_slot **slot)
{
    while (unlikely(lock_enter(&slots, slot) != LOCK_ENTERED)) {
        uint32_t gate = atomic_load(&slots.gate);

        if (gate != 0)
            lock_gate_sleep(&slots, gate, lock_now() + 1000000000);
    }
}

static inline void read_registers(void)
{
    for (int i = 0; i < READS_PER_HOLD; i++)
        (void)registers[i];
}

static void slots_sections(long count)
{
    for (long i = 0; i < count; i++) {
        struct reader_slot *slot;

        slots_enter(&slot);
        (void)registers[0];
        lock_leave(&slots, slot);
    }
}

static void rwlock_sections(long count)
{
    for (long i = 0; i < count; i++) {
        pthread_rwlock_rdlock(&rwlock);
        (void)registers[0];
        pthread_rwlock_unlock(&rwlock);
    }
}

struct sections {
    void (*work)(long);
    long count;
};

static void *sections_thread(void *argument)
{
    struct sections *sections = argument;

    sections->work(sections->count);
    return NULL;
}

/* Of all threads of the process: what others on the machine do meanwhile does not count. */
static int64_t processor_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static double sections_ns(void (*work)(long), long count, int threads)
{
    struct sections sections = {work, count};
    pthread_t thread[MAX_READERS];
    int64_t start;

    pthread_once(&once, setup);
    start = processor_ns();
    for (int i = 1; i < threads; i++)
        pthread_create(&thread[i], NULL, sections_thread, &sections);
    work(count);
    for (int i = 1; i < threads; i++)
        pthread_join(thread[i], NULL);
    return (double)(processor_ns() - start) / (double)count / threads;
}

/* Nanoseconds for entering and leaving once, by each of so many threads at the same time. */
double slots_read_ns(long count, int threads)
{
    return sections_ns(slots_sections, count, threads);
}

double rwlock_read_ns(long count, int threads)
{
    return sections_ns(rwlock_sections, count, threads);
}

/* ---- a writer among readers ---- */

static void *slots_reader(void *unused)
{
    (void)unused;
    while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
        struct reader_slot *slot;

        slots_enter(&slot);
        read_registers();
        lock_leave(&slots, slot);
    }
    return NULL;
}

static void *rwlock_reader(void *unused)
{
    (void)unused;
    while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
        pthread_rwlock_rdlock(&rwlock);
        read_registers();
        pthread_rwlock_unlock(&rwlock);
    }
    return NULL;
}

static void slots_write(void)
{
    int64_t deadline = lock_now() + INT64_C(10000000000);

    if (lock_write_begin(&slots, deadline) != 0 || lock_write_drain(&slots, deadline) != 0)
        abort();
}

static void slots_unwrite(void)
{
    lock_write_end(&slots);
}

static void rwlock_write(void)
{
    pthread_rwlock_wrlock(&rwlock);
}

static void rwlock_unwrite(void)
{
    pthread_rwlock_unlock(&rwlock);
}

static int ascending(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;

    return (a > b) - (a < b);
}

static double drain_us(void *(*reader)(void *), void (*take)(void), void (*give)(void), int readers, int cycles, double *max)
{
    double *times = malloc((size_t)cycles * sizeof(*times));
    pthread_t thread[MAX_READERS];

    pthread_once(&once, setup);
    atomic_store(&stop, false);
    for (int i = 0; i < readers; i++)
        pthread_create(&thread[i], NULL, reader, NULL);
    for (int i = 0; i < cycles; i++) {
        usleep(500);
        int64_t start = lock_now();

        take();
        times[i] = (double)(lock_now() - start) / 1e3;
        give();
    }
    atomic_store(&stop, true);
    for (int i = 0; i < readers; i++)
        pthread_join(thread[i], NULL);
    qsort(times, (size_t)cycles, sizeof(*times), ascending);
    double median = times[cycles / 2];

    if (times[cycles - 1] > *max)
        *max = times[cycles - 1];
    free(times);
    return median;
}

/* Median of the microseconds until a writer is alone among so many readers; *max grows to the longest. */
double slots_drain_us(int readers, int cycles, double *max)
{
    return drain_us(slots_reader, slots_write, slots_unwrite, readers, cycles, max);
}

double rwlock_drain_us(int readers, int cycles, double *max)
{
    return drain_us(rwlock_reader, rwlock_write, rwlock_unwrite, readers, cycles, max);
}

/* SPDX-License-Identifier: MIT */
/*
 * Stress of the memory lock without Python, for ThreadSanitizer and at full speed.
 *
 * usage: lock_stress SECONDS
 *
 * Readers (nesting; some end while they are inside), writers (with deadlines far too short, trying, and patient ones)
 * and plain variables that only the lock guards: ThreadSanitizer reports a race if an order is too weak, and the
 * counters are compared at the end. Prints one line of figures; exit status 1 and a reason if anything is wrong.
 */
#include "lock.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define READERS 4
#define PATIENT 2
#define MS 1000000

static struct memory_lock lock;
static _Atomic bool stop;
static uint64_t guarded[2], writes_done; /* plain on purpose */
static _Atomic uint64_t reads, refused, expired, taken, tried, ended;

static void fail(const char *why)
{
    printf("FAILED: %s\n", why);
    exit(1);
}

static void look(void)
{
    uint64_t first = guarded[0], second = guarded[1];

    if (first != second)
        fail("a reader saw a writer at work");
    atomic_fetch_add_explicit(&reads, 1, memory_order_relaxed);
}

static void *reader(void *unused)
{
    (void)unused;
    while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
        struct reader_slot *slot;

        if (lock_enter(&lock, &slot) == LOCK_ENTERED) {
            look();
            lock_leave(&lock, slot);
        } else {
            atomic_fetch_add_explicit(&refused, 1, memory_order_relaxed);
        }
        if (lock_acquire(&lock) != 0)
            continue;
        if (lock_acquire(&lock) != 0)
            fail("a nested section was refused");
        look();
        if (lock_enter(&lock, &slot) != LOCK_NESTED)
            fail("a nested access was refused");
        lock_leave(&lock, slot);
        if (lock_release(&lock) != 0 || lock_read_depth(&lock) != 1)
            fail("nesting is not counted");
        look();
        if (lock_release(&lock) != 0 || lock_release(&lock) != -EPERM)
            fail("a release too many was accepted");
    }
    return NULL;
}

/* Threads that end inside of a section, one after another: their slot is let go of and used again. */
static void *ending(void *unused)
{
    (void)unused;
    if (lock_acquire(&lock) == 0)
        look();
    return NULL;
}

static void *mortal(void *unused)
{
    (void)unused;
    while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
        pthread_t thread;

        if (pthread_create(&thread, NULL, ending, NULL) != 0)
            fail("no thread");
        pthread_join(thread, NULL);
        atomic_fetch_add_explicit(&ended, 1, memory_order_relaxed);
    }
    return NULL;
}

static void write_now(void)
{
    guarded[0]++;
    guarded[1]++;
    writes_done++;
    if (lock_write_end(&lock) != 0)
        fail("the owner can't release");
}

static void *writer(void *patience)
{
    int64_t ns = *(const int64_t *)patience;

    while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
        int64_t deadline = lock_now() + ns;
        int result = lock_write_begin(&lock, deadline);

        if (result == 0) {
            result = lock_write_drain(&lock, deadline);
            if (result != 0)
                lock_write_end(&lock);
        }
        if (result == 0) {
            if (lock_write_begin(&lock, 0) != 1 || lock_write_end(&lock) != 0)
                fail("writing does not nest");
            write_now();
            atomic_fetch_add_explicit(&taken, 1, memory_order_relaxed);
        } else if (result == -ETIMEDOUT) {
            atomic_fetch_add_explicit(&expired, 1, memory_order_relaxed);
        } else {
            fail("a writer met an unknown result");
        }
        if (ns > MS && result != 0)
            fail("a patient writer did not get in");
    }
    return NULL;
}

static void *trier(void *unused)
{
    (void)unused;
    while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
        int result = lock_write_try(&lock);

        if (result == 0)
            write_now();
        else if (result != -EBUSY)
            fail("a try met an unknown result");
        atomic_fetch_add_explicit(&tried, result == 0, memory_order_relaxed);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    static const int64_t patient = 20000 * (int64_t)MS, hasty = MS / 50;
    pthread_t threads[READERS + PATIENT + 3];
    size_t count = 0;
    struct lock_holder holders[4];

    if (argc != 2)
        fail("usage: lock_stress SECONDS");
    lock_init(&lock);
    for (int i = 0; i < READERS; i++)
        pthread_create(&threads[count++], NULL, reader, NULL);
    for (int i = 0; i < PATIENT; i++)
        pthread_create(&threads[count++], NULL, writer, (void *)&patient);
    pthread_create(&threads[count++], NULL, writer, (void *)&hasty);
    pthread_create(&threads[count++], NULL, trier, NULL);
    pthread_create(&threads[count++], NULL, mortal, NULL);

    int64_t end = lock_now() + (int64_t)(atof(argv[1]) * 1e9);

    while (lock_now() < end)
        lock_holders(&lock, holders, 4);
    atomic_store(&stop, true);
    for (size_t i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
    if (guarded[0] != guarded[1] || guarded[0] != writes_done || writes_done != taken + tried)
        fail("writes were lost");
    if (lock_holders(&lock, holders, 4) != 0 || atomic_load(&lock.gate) != 0)
        fail("somebody is still in");
    printf("reads %lu refused %lu writes %lu tried %lu expired %lu ended %lu\n", reads, refused, taken, tried, expired,
           ended);
    return 0;
}

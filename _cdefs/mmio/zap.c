/* SPDX-License-Identifier: MIT */
/* Zap and revive: taking a window's memory away and bringing it back, in step with the fault handler. See window.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "zap.h"

#include "futex.h"

#include <stdlib.h>
#include <sys/mman.h>

#define DRAIN_SPINS 200

/* ---- mappings ---- */

/* Children and core dumps must not have device memory. MAP_FIXED drops both flags: call it after each. */
void window_keep_out(uintptr_t base, size_t size)
{
    madvise((void *)base, size, MADV_DONTFORK);
    madvise((void *)base, size, MADV_DONTDUMP);
}

int window_blank(uintptr_t base, size_t size)
{
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;

    if (mmap((void *)base, size, PROT_NONE, flags, -1, 0) == MAP_FAILED)
        return -errno;
    window_keep_out(base, size);
    return 0;
}

int window_area_mmap(uintptr_t base, const struct area *area, int fd)
{
    void *at = (void *)(base + area->place);

    if (mmap(at, area->length, area->prot, MAP_SHARED | MAP_FIXED, fd, (off_t)area->file_offset) == MAP_FAILED)
        return -errno;
    window_keep_out(base + area->place, area->length);
    return 0;
}

int window_closed_error(struct window *window)
{
    uint32_t state = atomic_load(&window->state);

    return state == WINDOW_CLOSED || state == WINDOW_FORKED ? -EBADF : 0;
}

/* ---- handlers in flight ---- */

uint32_t window_handler_enter(struct window *window)
{
    for (;;) {
        uint32_t epoch = atomic_load(&window->epoch);

        atomic_fetch_add(&window->inflight[epoch & 1], 1);
        if (atomic_load(&window->epoch) == epoch)
            return epoch;
        window_handler_leave(window, epoch); /* a drainer does not wait for this parity any more */
    }
}

void window_handler_leave(struct window *window, uint32_t epoch)
{
    _Atomic uint32_t *inflight = &window->inflight[epoch & 1];

    if (atomic_fetch_sub(inflight, 1) == 1 && atomic_load(&window->drainers) != 0)
        futex_wake_all(inflight);
}

static int drain_parity(struct window *window, int64_t deadline)
{
    _Atomic uint32_t *inflight = &window->inflight[atomic_fetch_add(&window->epoch, 1) & 1];
    unsigned spins = DRAIN_SPINS;
    uint32_t count;

    while ((count = atomic_load(inflight)) != 0) {
        if (spins > 0) {
            spins--;
            lock_relax();
            continue;
        }
        atomic_fetch_add(&window->drainers, 1);
        int result = futex_wait(inflight, count, deadline);

        atomic_fetch_sub(&window->drainers, 1);
        if (result == -ETIMEDOUT)
            return result;
    }
    return 0;
}

/*
 * Wait until every handler that may have seen the state before the last change has left. Those that come
 * in meanwhile count in the other parity and can't hold this up. Both parities, because an earlier drain
 * may have given up half-way. Window's mutex held.
 */
int window_drain_handlers(struct window *window, int64_t deadline)
{
    int result = drain_parity(window, deadline);

    return result != 0 ? result : drain_parity(window, deadline);
}

/* ---- zap and revive ---- */

/* The state goes first: from then on a fault in the range is answered with ones. */
static void zap_mark(struct window *window, int32_t reason)
{
    atomic_store(&window->reason, reason);
    atomic_store(&window->state, WINDOW_ZAPPED);
    lock_gate_set(&window->lock, GATE_ZAPPED);
}

/* The pages could not be replaced: they are what they were, and so is the state. */
static void zap_unmark(struct window *window, uint32_t state)
{
    if (state != WINDOW_LIVE)
        return;
    atomic_store(&window->state, state);
    lock_gate_clear(&window->lock, GATE_ZAPPED);
}

int window_zap(struct window *window, int32_t reason)
{
    return window_zap_many(&window, 1, reason);
}

static int by_base(const void *left, const void *right)
{
    uintptr_t a = atomic_load(&(*(struct window *const *)left)->base);
    uintptr_t b = atomic_load(&(*(struct window *const *)right)->base);

    return (a > b) - (a < b);
}

/* Zap windows that abut, all mutexes held. */
static int zap_run(struct window **run, size_t count, int32_t reason)
{
    uintptr_t base = atomic_load(&run[0]->base);
    size_t size = 0;

    for (size_t i = 0; i < count; i++) {
        run[i]->before = atomic_load(&run[i]->state);
        zap_mark(run[i], reason);
        size += atomic_load(&run[i]->size);
    }
    int error = window_blank(base, size);

    for (size_t i = 0; i < count; i++) {
        if (error == 0)
            atomic_store(&run[i]->ones, 0);
        else
            zap_unmark(run[i], run[i]->before);
    }
    return error;
}

static uintptr_t end_of(struct window *window)
{
    return atomic_load(&window->base) + atomic_load(&window->size);
}

/* How many windows, from the first on, abut. */
static size_t run_length(struct window **sorted, size_t count)
{
    size_t run = 1;

    while (run < count && end_of(sorted[run - 1]) == atomic_load(&sorted[run]->base))
        run++;
    return run;
}

int window_zap_many(struct window **set, size_t count, int32_t reason)
{
    int error = 0;

    if (count > 1)
        qsort(set, count, sizeof(*set), by_base);
    for (size_t i = 0; i < count; i++)
        pthread_mutex_lock(&set[i]->mutex);
    for (size_t i = 0; i < count && error == 0; i++)
        error = window_closed_error(set[i]);
    for (size_t i = 0; i < count && error == 0;) {
        size_t run = run_length(set + i, count - i);

        error = zap_run(set + i, run, reason);
        i += run;
    }
    for (size_t i = count; i-- > 0;)
        pthread_mutex_unlock(&set[i]->mutex);
    return error;
}

static int map_areas(struct window *window, int fd)
{
    const struct area_table *table = atomic_load(&window->areas);
    int error = 0;

    for (size_t i = 0; table != NULL && i < table->count && error == 0; i++)
        error = window_area_mmap(atomic_load(&window->base), &table->area[i], fd);
    return error;
}

/* State REVIVING, no handler in flight: nobody else changes mappings. */
static int remap(struct window *window, uint32_t state, int fd)
{
    uintptr_t base = atomic_load(&window->base);
    size_t size = atomic_load(&window->size);
    int error = 0;

    /* ones lie in holes too, or a bus error left some among live areas */
    if (state == WINDOW_LIVE || atomic_load(&window->ones) != 0)
        error = window_blank(base, size);
    if (error == 0)
        error = map_areas(window, fd);
    if (error != 0)
        window_blank(base, size);
    return error;
}

int window_revive(struct window *window, int fd, int64_t deadline)
{
    pthread_mutex_lock(&window->mutex);
    uint32_t state = atomic_load(&window->state);
    int error = window_closed_error(window);

    if (error != 0) {
        pthread_mutex_unlock(&window->mutex);
        return error;
    }
    atomic_store(&window->state, WINDOW_REVIVING);
    error = window_drain_handlers(window, deadline);
    if (error != 0) {
        atomic_store(&window->state, state);
        pthread_mutex_unlock(&window->mutex);
        return error;
    }
    error = remap(window, state, fd);
    if (error == 0) {
        atomic_fetch_add(&window->generation, 1);
        atomic_store(&window->flag, FLAG_NONE);
    }
    atomic_store(&window->ones, 0);
    atomic_store(&window->state, error == 0 ? WINDOW_LIVE : WINDOW_ZAPPED);
    if (error == 0)
        lock_gate_clear(&window->lock, GATE_ZAPPED | GATE_FLAGGED);
    else
        lock_gate_set(&window->lock, GATE_ZAPPED);
    pthread_mutex_unlock(&window->mutex);
    return error;
}

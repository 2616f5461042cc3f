/* SPDX-License-Identifier: MIT */
/* What a touch of a window meets when its memory is away. See fault.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "fault.h"

#include "window.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define RETRY_NS 20000
#define ONES_LIMIT 4096 /* of a process's 65530 mappings, by default; each is a granule of ones */
#define PREVIOUS 32     /* handlers that were there before, remembered for each signal */
#define PATIENCE 1000   /* faults at one address, on end, after which a handler that returns is no help */

enum verdict { NOT_OURS, RETRY, SERVED };

/* What a thread remembers of a fault in live memory: the second one, with no revive between, is real. */
struct last_fault {
    struct window *window;
    uintptr_t address;
    uint64_t generation;
};

/* Faults that were not ours: how often on end at one address, and how many handlers gave it up. */
struct last_chained {
    uintptr_t address;
    uint32_t times, given_up;
};

static LOCK_TLS struct last_fault last_fault;
static LOCK_TLS struct last_chained last_chained;
static LOCK_TLS int chaining;

static const int signals[2] = {SIGSEGV, SIGBUS};
/* Written under the mutex, then published by its index: a handler reads a whole entry or an older one. */
static struct sigaction previous[2][PREVIOUS];
static _Atomic uint32_t previous_index[2];
static pthread_mutex_t install_mutex = PTHREAD_MUTEX_INITIALIZER;

static _Atomic uint64_t num_faults, num_served, num_retried, num_chained, num_rezapped, num_asserted;
static _Atomic uint32_t delay_us;
static _Atomic uint32_t ones_limit = ONES_LIMIT;

static void sleep_ns(long ns)
{
    struct timespec t = {.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};

    clock_nanosleep(CLOCK_MONOTONIC, 0, &t, NULL);
}

/* ---- ones ---- */

/* The part of the granule round an address that may be replaced: [*start, *end). */
static void granule(struct window *window, uintptr_t address, uint32_t state, uintptr_t *start, uintptr_t *end)
{
    uintptr_t base = atomic_load(&window->base);
    const struct area_table *table = atomic_load(&window->areas);

    *start = address & ~(uintptr_t)(WINDOW_GRANULE - 1);
    *end = *start + WINDOW_GRANULE;
    /* among live areas, only the one that failed */
    for (size_t i = 0; state == WINDOW_LIVE && table != NULL && i < table->count; i++) {
        uintptr_t first = base + table->area[i].place, last = first + table->area[i].length;

        if (address < first || address >= last)
            continue;
        *start = *start < first ? first : *start;
        *end = *end > last ? last : *end;
    }
}

/*
 * Too many mappings: make the whole window one again. In a live window the device does not answer
 * granule after granule; it is zapped as a whole, so that a revive puts everything back.
 */
static void empty_of_ones(struct window *window, uint32_t state)
{
    uint32_t live = WINDOW_LIVE;

    if (state == WINDOW_LIVE) {
        if (!atomic_compare_exchange_strong(&window->state, &live, WINDOW_ZAPPED))
            return;
        atomic_store(&window->reason, 0);
        atomic_fetch_or(&window->lock.gate, GATE_ZAPPED | GATE_FLAGGED);
    }
    if (window_blank(atomic_load(&window->base), atomic_load(&window->size)) == 0) {
        atomic_store(&window->ones, 0);
        atomic_fetch_add(&num_rezapped, 1);
    }
}

/* Map ones round an address. Flag first: who reads ones without a fault must find the flag. */
static enum verdict serve(struct window *window, uintptr_t address, uint32_t state)
{
    uintptr_t start, end;

    atomic_store(&window->flag, state == WINDOW_LIVE ? FLAG_BUS_ERROR : FLAG_TOUCHED);
    if (state == WINDOW_LIVE)
        atomic_fetch_or(&window->lock.gate, GATE_FLAGGED);
    if (atomic_fetch_add(&window->ones, 1) >= atomic_load(&ones_limit)) {
        empty_of_ones(window, state);
        if (state == WINDOW_LIVE)
            return RETRY; /* zapped now, or being revived: the next fault sees */
    }
    granule(window, address, state, &start, &end);
    void *got = mmap((void *)start, end - start, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED,
                     window_ones_file(), (off_t)(start % WINDOW_GRANULE));

    return got == MAP_FAILED ? NOT_OURS : SERVED;
}

/*
 * One fault in a window. Whoever changes mappings first sets the state and then waits for handlers that
 * may have seen the old one, so what is read here holds until this handler has left.
 */
static enum verdict window_fault(struct window *window, uintptr_t address, int number)
{
    uint32_t state = atomic_load(&window->state);
    uint64_t generation = atomic_load(&window->generation);
    uint32_t delay = atomic_load(&delay_us);

    if (delay != 0)
        sleep_ns((long)delay * 1000);
    if (state == WINDOW_REVIVING)
        return RETRY;
    if (state != WINDOW_LIVE)
        return serve(window, address, state);
    /* live: the memory may have come back since the fault; the same again in this generation is real */
    if (last_fault.window != window || last_fault.address != address || last_fault.generation != generation) {
        last_fault = (struct last_fault){window, address, generation};
        return RETRY;
    }
    return number == SIGBUS ? serve(window, address, state) : NOT_OURS;
}

static bool inside(struct window *window, uintptr_t address)
{
    return address - atomic_load(&window->base) < atomic_load(&window->size);
}

static enum verdict dispatch(uintptr_t address, int number)
{
    for (struct window *window = window_first(); window != NULL; window = window->next) {
        if (!inside(window, address))
            continue;
        uint32_t epoch = window_handler_enter(window);
        enum verdict verdict = NOT_OURS;
        bool reviving = false;

        if (inside(window, address)) { /* still: it may have been closed meanwhile */
            verdict = window_fault(window, address, number);
            reviving = verdict == RETRY && atomic_load(&window->state) == WINDOW_REVIVING;
        }
        window_handler_leave(window, epoch);
        if (reviving)
            sleep_ns(RETRY_NS);
        return verdict;
    }
    return NOT_OURS;
}

/* ---- the signals ---- */

/* A fault of this thread's own access, which the kernel reports with its address. */
static bool is_access(const siginfo_t *info, int number)
{
    if (number == SIGSEGV)
        return info->si_code == SEGV_MAPERR || info->si_code == SEGV_ACCERR;
    /* not BUS_ADRALN: an unaligned access is a programming error, also while the memory is away */
    return info->si_code == BUS_ADRERR || info->si_code == BUS_OBJERR || info->si_code == BUS_MCEERR_AR;
}

static void die_by(int number, const siginfo_t *info)
{
    struct sigaction plain;

    memset(&plain, 0, sizeof(plain));
    plain.sa_handler = SIG_DFL;
    sigaction(number, &plain, NULL);
    /* a fault happens again when the handler returns, with its true address in the core; a sent signal does not */
    if (info->si_code <= 0)
        raise(number);
}

/* Call the handler that was there before, under the mask that it asked for. */
static void call_previous(const struct sigaction *before, int number, siginfo_t *info, void *context)
{
    sigset_t mask = before->sa_mask, old;

    if ((before->sa_flags & SA_NODEFER) == 0)
        sigaddset(&mask, number);
    chaining++;
    pthread_sigmask(SIG_BLOCK, &mask, &old);
    if ((before->sa_flags & SA_SIGINFO) != 0)
        before->sa_sigaction(number, info, context);
    else
        before->sa_handler(number);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    chaining--;
}

/*
 * Who was there before us. A handler that returns and leaves the fault as it was would be called for ever
 * (faulthandler's does so once it is disabled, and can have been left behind us): after some patience, the one before
 * that gets its turn, and in the end the default.
 */
static const struct sigaction *handler_before(int which, const siginfo_t *info)
{
    static const struct sigaction plain;
    uint32_t index = atomic_load(&previous_index[which]);
    struct last_chained *last = &last_chained;

    if (info->si_code <= 0)
        return &previous[which][index % PREVIOUS];
    if (last->address != (uintptr_t)info->si_addr)
        *last = (struct last_chained){.address = (uintptr_t)info->si_addr};
    if (++last->times > PATIENCE) {
        last->times = 0;
        last->given_up++;
    }
    if (last->given_up >= index || last->given_up >= PREVIOUS)
        return &plain;
    return &previous[which][(index - last->given_up) % PREVIOUS];
}

static void chain(int which, siginfo_t *info, void *context)
{
    const struct sigaction *before = handler_before(which, info);
    int number = signals[which];

    atomic_fetch_add(&num_chained, 1);
    /* faulthandler restores what was before it (us), and raises again: not a second time round */
    if (chaining > 0 || before->sa_handler == SIG_DFL) {
        die_by(number, info);
        return;
    }
    if (before->sa_handler == SIG_IGN) {
        if (info->si_code > 0) /* a fault can't be ignored: the kernel kills */
            die_by(number, info);
        return;
    }
    call_previous(before, number, info, context);
}

static void on_fault(int number, siginfo_t *info, void *context)
{
    int saved = errno;
    enum verdict verdict = NOT_OURS;

    atomic_fetch_add(&num_faults, 1);
    if (is_access(info, number))
        verdict = dispatch((uintptr_t)info->si_addr, number);
    if (verdict == NOT_OURS) {
        chain(number == SIGSEGV ? 0 : 1, info, context);
    } else {
        last_chained.address = 0;
        atomic_fetch_add(verdict == SERVED ? &num_served : &num_retried, 1);
    }
    errno = saved;
}

/* ---- installing ---- */

static int assert_one(int which)
{
    struct sigaction current, ours;

    if (sigaction(signals[which], NULL, &current) != 0)
        return -errno;
    if ((current.sa_flags & SA_SIGINFO) != 0 && current.sa_sigaction == on_fault)
        return 0;
    uint32_t index = atomic_load(&previous_index[which]) + 1;

    previous[which][index % PREVIOUS] = current;
    atomic_store(&previous_index[which], index);
    memset(&ours, 0, sizeof(ours));
    ours.sa_sigaction = on_fault;
    /* SA_NODEFER: a handler that we chain to may raise the signal again and expects it at once */
    ours.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER | SA_RESTART;
    sigemptyset(&ours.sa_mask);
    if (sigaction(signals[which], &ours, NULL) != 0)
        return -errno;
    atomic_fetch_add(&num_asserted, 1);
    return 1;
}

int fault_assert(void)
{
    int changed = 0;

    pthread_mutex_lock(&install_mutex);
    for (int which = 0; which < 2; which++) {
        int result = assert_one(which);

        changed = result < 0 || changed < 0 ? -EINVAL : changed | result;
    }
    pthread_mutex_unlock(&install_mutex);
    return changed;
}

void fault_fork_child(void)
{
    pthread_mutex_init(&install_mutex, NULL);
}

struct fault_stats fault_stats(void)
{
    return (struct fault_stats){
        .faults = atomic_load(&num_faults),
        .served = atomic_load(&num_served),
        .retried = atomic_load(&num_retried),
        .chained = atomic_load(&num_chained),
        .rezapped = atomic_load(&num_rezapped),
        .asserted = atomic_load(&num_asserted),
    };
}

void fault_set_delay(uint32_t microseconds)
{
    atomic_store(&delay_us, microseconds);
}

void fault_set_ones_limit(uint32_t limit)
{
    atomic_store(&ones_limit, limit == 0 ? ONES_LIMIT : limit);
}

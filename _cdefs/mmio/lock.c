/* SPDX-License-Identifier: MIT */
/* The memory lock where it is not the usual case: readers that nest or are refused, the gate, the writer. See lock.h. */
#include "lock.h"

#include "futex.h"
#include "reader.h"

/* How often a writer looks again before it sleeps. Few: a reader that runs leaves at once, one that does not run needs
 * the processor, perhaps this one. */
#ifndef LOCK_DRAIN_SPINS
#define LOCK_DRAIN_SPINS 20u
#endif

void lock_wake_writer(struct memory_lock *lock)
{
    if (atomic_fetch_sub(&lock->pending, 1) == 1)
        futex_wake_all(&lock->pending);
}

/* ---- readers ---- */

int lock_enter_slow(struct memory_lock *lock, struct reader_slot **slot)
{
    struct reader_slot *mine = NULL;
    int error = reader_slot(lock, &mine);

    *slot = NULL;
    if (error != 0)
        return error;
    if (atomic_load(&mine->word) != 0)
        return LOCK_NESTED;
    /* the writer itself may read: nobody else is in, and nothing will be taken away under it */
    uint32_t refuse = lock_write_owned(lock) ? ~GATE_WRITER : ~0u;

    if ((atomic_load(&lock->gate) & refuse) != 0)
        return -EBUSY;
    /* one store only: a writer may set WAITED in the slot from here on, and must not be forgotten */
    atomic_store(&mine->word, 1);
    if ((atomic_load(&lock->gate) & refuse) != 0) {
        lock_leave(lock, mine);
        return -EBUSY;
    }
    *slot = mine;
    return LOCK_ENTERED;
}

int lock_acquire(struct memory_lock *lock)
{
    struct reader_slot *slot;
    int result = lock_enter(lock, &slot);

    if (result < 0)
        return result;
    if (result == LOCK_NESTED) /* relaxed: only the depth changes, and WAITED may arrive meanwhile */
        atomic_fetch_add_explicit(&lock_slot(lock)->word, 1, memory_order_relaxed);
    lock_reader.sections++;
    return 0;
}

int lock_release(struct memory_lock *lock)
{
    struct reader_slot *slot = lock_slot(lock);
    uint32_t depth = lock_read_depth(lock);

    if (depth == 0)
        return -EPERM;
    if (depth > 1)
        atomic_fetch_sub_explicit(&slot->word, 1, memory_order_relaxed);
    else
        lock_leave(lock, slot);
    lock_reader.sections--;
    return 0;
}

uint32_t lock_read_depth(struct memory_lock *lock)
{
    struct reader_slot *slot = lock_slot(lock);

    return slot == NULL ? 0 : atomic_load_explicit(&slot->word, memory_order_relaxed) & ~SLOT_WAITED;
}

/* ---- the gate ---- */

int lock_gate_sleep(struct memory_lock *lock, uint32_t value, int64_t deadline)
{
    /* waiters first: whoever changes the gate then looks at waiters */
    atomic_fetch_add(&lock->waiters, 1);
    int result = futex_wait(&lock->gate, value, deadline);

    atomic_fetch_sub(&lock->waiters, 1);
    return result;
}

static void gate_changed(struct memory_lock *lock)
{
    if (atomic_load(&lock->waiters) != 0)
        futex_wake_all(&lock->gate);
}

void lock_gate_set(struct memory_lock *lock, uint32_t bits)
{
    atomic_fetch_or(&lock->gate, bits);
    gate_changed(lock);
}

void lock_gate_clear(struct memory_lock *lock, uint32_t bits)
{
    atomic_fetch_and(&lock->gate, ~bits);
    gate_changed(lock);
}

/* ---- the writer ---- */

bool lock_write_owned(struct memory_lock *lock)
{
    return atomic_load(&lock->owner) == lock_tid();
}

/* The gate was closed by this thread. */
static void write_own(struct memory_lock *lock)
{
    atomic_store(&lock->closed_at, lock_now());
    lock->depth = 1;
    atomic_store(&lock->owner, lock_tid());
    lock_reader.writing++;
}

int lock_write_begin(struct memory_lock *lock, int64_t deadline)
{
    if (lock_write_owned(lock)) {
        lock->depth++;
        return 1;
    }
    if (lock_read_depth(lock) != 0 || lock_reader.sections != 0 || lock_reader.writing != 0)
        return -EDEADLK;
    int error = reader_assign();

    if (error != 0)
        return error;
    for (;;) {
        uint32_t gate = atomic_fetch_or(&lock->gate, GATE_WRITER);

        if ((gate & GATE_WRITER) == 0)
            break;
        int result = lock_gate_sleep(lock, gate, deadline);

        if (result != 0)
            return result;
    }
    write_own(lock);
    return 0;
}

struct drain {
    struct reader_slot *mine; /* of a writer that reads, which it may: not waited for */
    uint32_t spins;
};

/* Spin while the slot is in use and there are spins left: a reader that runs leaves within these. */
static int visit_spin(struct memory_lock *lock, struct reader_slot *slot, uint32_t index, void *context)
{
    struct drain *drain = context;

    (void)lock, (void)index;
    while (slot != drain->mine && atomic_load(&slot->word) != 0) {
        if (drain->spins-- == 0)
            return -EBUSY;
        lock_relax();
    }
    return 0;
}

/* Ask the reader in this slot, if there is one, to tell when it leaves; counted before it can. */
static int visit_mark(struct memory_lock *lock, struct reader_slot *slot, uint32_t index, void *context)
{
    struct drain *drain = context;
    uint32_t word = atomic_load(&slot->word);

    (void)index;
    if (slot == drain->mine || word == 0)
        return 0;
    atomic_fetch_add(&lock->pending, 1);
    while (word != 0)
        if (atomic_compare_exchange_weak(&slot->word, &word, word | SLOT_WAITED))
            return 0;
    atomic_fetch_sub(&lock->pending, 1);
    return 0;
}

/* Ask no more; a reader that has left with the mark in hand will still count itself out. */
static int visit_unmark(struct memory_lock *lock, struct reader_slot *slot, uint32_t index, void *context)
{
    uint32_t word = atomic_load(&slot->word);

    (void)index, (void)context;
    while ((word & SLOT_WAITED) != 0)
        if (atomic_compare_exchange_weak(&slot->word, &word, word & ~SLOT_WAITED)) {
            atomic_fetch_sub(&lock->pending, 1);
            break;
        }
    return 0;
}

/*
 * Wait for the readers that were in when the gate was closed. Each one left is marked and counted, and the last
 * to leave wakes the writer: one sleep, however many there are.
 */
int lock_write_drain(struct memory_lock *lock, int64_t deadline)
{
    struct drain drain = {lock_slot(lock), LOCK_DRAIN_SPINS};
    uint32_t pending;
    int result = reader_each_slot(lock, visit_spin, &drain);

    if (result == 0 || deadline == 0)
        return result;
    atomic_fetch_add(&lock->pending, 1); /* so that it does not come to zero while there are slots to be marked */
    reader_each_slot(lock, visit_mark, &drain);
    atomic_fetch_sub(&lock->pending, 1);
    while ((pending = atomic_load(&lock->pending)) != 0) {
        result = futex_wait(&lock->pending, pending, deadline);
        if (result != 0) {
            reader_each_slot(lock, visit_unmark, NULL);
            return result;
        }
    }
    return 0;
}

int lock_write_end(struct memory_lock *lock)
{
    if (!lock_write_owned(lock))
        return -EPERM;
    if (--lock->depth > 0)
        return 0;
    lock_reader.writing--;
    atomic_store(&lock->owner, 0);
    lock_gate_clear(lock, GATE_WRITER);
    return 0;
}

int lock_write_try(struct memory_lock *lock)
{
    if (lock_write_owned(lock)) {
        lock->depth++;
        return 0;
    }
    if (lock_read_depth(lock) != 0)
        return -EDEADLK;
    int result = reader_assign();

    if (result != 0)
        return result;
    if ((atomic_fetch_or(&lock->gate, GATE_WRITER) & GATE_WRITER) != 0)
        return -EBUSY;
    write_own(lock);
    result = lock_write_drain(lock, 0);

    if (result != 0)
        lock_write_end(lock);
    return result;
}

struct holders {
    struct lock_holder *out;
    size_t capacity, count;
    int64_t held_ns;
};

static int visit_holder(struct memory_lock *lock, struct reader_slot *slot, uint32_t index, void *context)
{
    struct holders *holders = context;

    (void)lock;
    if ((atomic_load(&slot->word) & ~SLOT_WAITED) == 0)
        return 0;
    if (holders->count < holders->capacity)
        holders->out[holders->count] = (struct lock_holder){reader_tid(index), false, holders->held_ns};
    holders->count++;
    return 0;
}

size_t lock_holders(struct memory_lock *lock, struct lock_holder *out, size_t capacity)
{
    struct holders holders = {out, capacity, 0, 0};
    pid_t owner = atomic_load(&lock->owner);

    /* whoever is in while the gate is closed came before it was */
    if (owner != 0) {
        holders.held_ns = lock_now() - atomic_load(&lock->closed_at);
        if (capacity > 0)
            out[0] = (struct lock_holder){owner, true, holders.held_ns};
        holders.count = 1;
    }
    reader_each_slot(lock, visit_holder, &holders);
    return holders.count;
}

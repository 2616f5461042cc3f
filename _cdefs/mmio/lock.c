/* SPDX-License-Identifier: MIT */
/* The memory lock's slow ways: thread registry, sleeping readers, the writer. See lock.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "lock.h"

#include "futex.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* How long a writer spins over a whole drain before it sleeps: readers that run leave within this. */
#ifndef LOCK_DRAIN_SPINS
#define LOCK_DRAIN_SPINS 400u
#endif

LOCK_TLS struct reader lock_reader __attribute__((visibility("hidden")));

/* The registry: which index belongs to which thread, and all locks. Never held while anything waits. */
static pthread_mutex_t registry = PTHREAD_MUTEX_INITIALIZER;
static uint64_t *index_used; /* bitmap: the lowest free index is taken, so that writers look at few slots */
static size_t index_words;
static _Atomic uint32_t index_high; /* one more than the highest index ever used */
static _Atomic(_Atomic pid_t *) index_tid[LOCK_CHUNKS];
static struct memory_lock *all_locks;
static pthread_key_t reader_key; /* its destructor tells that a thread ended */
static pthread_once_t reader_once = PTHREAD_ONCE_INIT;
static int reader_key_error;

int64_t lock_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

pid_t lock_tid(void)
{
    if (lock_reader.tid == 0)
        lock_reader.tid = (pid_t)syscall(SYS_gettid);
    return lock_reader.tid;
}

void lock_wake_writer(struct reader_slot *slot)
{
    futex_wake_all(&slot->word);
}

/* ---- threads ---- */

static uint32_t chunk_size(uint32_t chunk)
{
    return LOCK_FIRST_CHUNK << (chunk - 1);
}

/* Index of the first slot of a chunk. */
static uint32_t chunk_start(uint32_t chunk)
{
    return LOCK_FIRST_CHUNK * ((1u << (chunk - 1)) - 1);
}

static uint32_t chunk_of(uint32_t index)
{
    uint32_t chunk = 1;

    while (index >= chunk_start(chunk + 1))
        chunk++;
    return chunk;
}

static void index_release(uint32_t index)
{
    uint32_t chunk = chunk_of(index);

    atomic_store(&atomic_load(&index_tid[chunk])[index - chunk_start(chunk)], 0);
    index_used[index / 64] &= ~(UINT64_C(1) << (index % 64));
}

static void leave_for_good(struct memory_lock *lock, uint32_t chunk, uint32_t pos, pid_t tid)
{
    struct reader_slot *slots = atomic_load(&lock->chunk[chunk]);

    if (slots != NULL && (atomic_exchange(&slots[pos].word, 0) & SLOT_WAITED))
        lock_wake_writer(&slots[pos]);
    if (atomic_load(&lock->owner) == tid) {
        lock->depth = 0;
        atomic_store(&lock->owner, 0);
        lock_gate_clear(lock, GATE_WRITER);
    }
}

/*
 * A thread ends. What it held it will never release, and it can touch nothing any more: let go for it.
 * Memory that its writer zapped stays zapped. Another destructor may use a lock after this one: then
 * the thread gets a new index, and the key's destructor runs once more.
 */
static void reader_gone(void *value)
{
    uint32_t index = (uint32_t)((uintptr_t)value - 1);

    pthread_mutex_lock(&registry);
    for (struct memory_lock *lock = all_locks; lock != NULL; lock = lock->next)
        leave_for_good(lock, (uint32_t)lock_reader.chunk, (uint32_t)lock_reader.pos, lock_reader.tid);
    index_release(index);
    memset(&lock_reader, 0, sizeof(lock_reader));
    pthread_mutex_unlock(&registry);
}

static void reader_setup(void)
{
    reader_key_error = -pthread_key_create(&reader_key, reader_gone);
}

/* Lowest free index, or -errno. Registry held. */
static int64_t index_take(void)
{
    size_t word = 0;

    while (word < index_words && index_used[word] == UINT64_MAX)
        word++;
    if (word == index_words) {
        size_t words = index_words == 0 ? 4 : index_words * 2;
        uint64_t *used = realloc(index_used, words * sizeof(*used));

        if (used == NULL)
            return -ENOMEM;
        memset(used + index_words, 0, (words - index_words) * sizeof(*used));
        index_used = used;
        index_words = words;
    }
    uint32_t index = (uint32_t)word * 64 + (uint32_t)__builtin_ctzll(~index_used[word]);

    if (chunk_of(index) >= LOCK_CHUNKS)
        return -EAGAIN;
    index_used[word] |= UINT64_C(1) << (index % 64);
    return index;
}

/* Give this thread an index, if it has none; it then has a place in every lock, and its end is noticed. */
static int reader_assign(void)
{
    pid_t tid = lock_tid();

    if (lock_reader.chunk != 0)
        return 0;
    pthread_once(&reader_once, reader_setup);
    if (reader_key_error != 0)
        return reader_key_error;
    pthread_mutex_lock(&registry);
    int64_t taken = index_take();

    if (taken < 0) {
        pthread_mutex_unlock(&registry);
        return (int)taken;
    }
    uint32_t index = (uint32_t)taken, chunk = chunk_of(index), pos = index - chunk_start(chunk);

    if (atomic_load(&index_tid[chunk]) == NULL) {
        _Atomic pid_t *tids = calloc(chunk_size(chunk), sizeof(*tids));

        if (tids != NULL)
            atomic_store(&index_tid[chunk], tids);
    }
    int error = atomic_load(&index_tid[chunk]) == NULL ? -ENOMEM : 0;

    if (error == 0)
        error = -pthread_setspecific(reader_key, (void *)((uintptr_t)index + 1));
    if (error != 0) {
        index_used[index / 64] &= ~(UINT64_C(1) << (index % 64));
    } else {
        atomic_store(&atomic_load(&index_tid[chunk])[pos], tid);
        if (index >= atomic_load(&index_high))
            atomic_store(&index_high, index + 1);
        lock_reader.chunk = chunk;
        lock_reader.pos = pos;
    }
    pthread_mutex_unlock(&registry);
    return error;
}

/* This thread's slot in a lock, made if need be. */
static int slot_make(struct memory_lock *lock, struct reader_slot **slot)
{
    int error = reader_assign();

    if (error != 0)
        return error;
    uint32_t chunk = (uint32_t)lock_reader.chunk;

    if (atomic_load(&lock->chunk[chunk]) == NULL) {
        pthread_mutex_lock(&registry);
        if (atomic_load(&lock->chunk[chunk]) == NULL) {
            size_t size = chunk_size(chunk) * sizeof(struct reader_slot);
            struct reader_slot *slots = aligned_alloc(LOCK_LINE, size);

            if (slots != NULL) {
                memset(slots, 0, size);
                atomic_store(&lock->chunk[chunk], slots);
            }
        }
        pthread_mutex_unlock(&registry);
    }
    *slot = lock_slot(lock);
    return *slot == NULL ? -ENOMEM : 0;
}

void lock_init(struct memory_lock *lock)
{
    memset(lock, 0, sizeof(*lock));
    pthread_mutex_lock(&registry);
    lock->next = all_locks;
    all_locks = lock;
    pthread_mutex_unlock(&registry);
}

/* Empty all slots but one thread's (chunk 0: nobody's), and forget the writer unless it is that thread. */
static void forget(struct memory_lock *lock, const struct reader *keep)
{
    for (uint32_t chunk = 1; chunk < LOCK_CHUNKS; chunk++) {
        struct reader_slot *slots = atomic_load(&lock->chunk[chunk]);

        for (uint32_t pos = 0; slots != NULL && pos < chunk_size(chunk); pos++)
            if (chunk != keep->chunk || pos != keep->pos)
                atomic_store(&slots[pos].word, 0);
    }
    if (keep->tid != 0 && atomic_load(&lock->owner) == keep->tid)
        return;
    lock->depth = 0;
    atomic_store(&lock->owner, 0);
    atomic_fetch_and(&lock->gate, ~GATE_WRITER);
}

void lock_reset(struct memory_lock *lock)
{
    forget(lock, &(struct reader){0});
    atomic_store(&lock->gate, 0);
}

/* ---- readers ---- */

int lock_enter_slow(struct memory_lock *lock, struct reader_slot **slot)
{
    struct reader_slot *mine = NULL;
    int error = slot_make(lock, &mine);

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
        lock_leave(mine);
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
        lock_leave(slot);
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

/* Wait until one slot is empty; *spins is what is left of the drain's budget. */
static int slot_drain(struct reader_slot *slot, uint32_t *spins, int64_t deadline)
{
    uint32_t word;

    while ((word = atomic_load(&slot->word)) != 0) {
        if (*spins > 0) {
            (*spins)--;
            lock_relax();
            continue;
        }
        if (deadline == 0)
            return -EBUSY;
        if ((word & SLOT_WAITED) == 0) {
            if (!atomic_compare_exchange_strong(&slot->word, &word, word | SLOT_WAITED))
                continue;
            word |= SLOT_WAITED;
        }
        int result = futex_wait(&slot->word, word, deadline);

        if (result != 0)
            return result;
    }
    return 0;
}

/* Call visit for each slot that may be in use; stops at a result other than 0. */
typedef int (*slot_visit)(struct reader_slot *slot, uint32_t chunk, uint32_t pos, void *context);

static int each_slot(struct memory_lock *lock, slot_visit visit, void *context)
{
    uint32_t high = atomic_load(&index_high);

    for (uint32_t chunk = 1; chunk < LOCK_CHUNKS && chunk_start(chunk) < high; chunk++) {
        struct reader_slot *slots = atomic_load(&lock->chunk[chunk]);
        uint32_t count = high - chunk_start(chunk);

        if (slots == NULL)
            continue;
        if (count > chunk_size(chunk))
            count = chunk_size(chunk);
        for (uint32_t pos = 0; pos < count; pos++) {
            int result = visit(&slots[pos], chunk, pos, context);

            if (result != 0)
                return result;
        }
    }
    return 0;
}

struct drain {
    struct reader_slot *mine;
    uint32_t spins;
    int64_t deadline;
};

static int visit_drain(struct reader_slot *slot, uint32_t chunk, uint32_t pos, void *context)
{
    struct drain *drain = context;

    (void)chunk, (void)pos;
    /* own slot: a writer that reads, which it may */
    return slot == drain->mine ? 0 : slot_drain(slot, &drain->spins, drain->deadline);
}

int lock_write_drain(struct memory_lock *lock, int64_t deadline)
{
    struct drain drain = {lock_slot(lock), LOCK_DRAIN_SPINS, deadline};

    return each_slot(lock, visit_drain, &drain);
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

static int visit_holder(struct reader_slot *slot, uint32_t chunk, uint32_t pos, void *context)
{
    struct holders *holders = context;
    _Atomic pid_t *tids = atomic_load(&index_tid[chunk]);

    if ((atomic_load(&slot->word) & ~SLOT_WAITED) == 0 || tids == NULL)
        return 0;
    if (holders->count < holders->capacity)
        holders->out[holders->count] = (struct lock_holder){atomic_load(&tids[pos]), false, holders->held_ns};
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
    each_slot(lock, visit_holder, &holders);
    return holders.count;
}

/* ---- fork ---- */

void lock_fork_prepare(void)
{
    pthread_mutex_lock(&registry);
}

void lock_fork_parent(void)
{
    pthread_mutex_unlock(&registry);
}

/* The child has one thread, with a new id, which keeps what it held; the others' slots and indexes are free. */
void lock_fork_child(void)
{
    struct reader before = lock_reader;
    uint32_t index = before.chunk == 0 ? UINT32_MAX : chunk_start((uint32_t)before.chunk) + (uint32_t)before.pos;

    lock_reader.tid = (pid_t)syscall(SYS_gettid);
    for (struct memory_lock *lock = all_locks; lock != NULL; lock = lock->next) {
        forget(lock, &before);
        atomic_store(&lock->waiters, 0);
        if (atomic_load(&lock->owner) != 0)
            atomic_store(&lock->owner, lock_reader.tid);
    }
    for (uint32_t other = 0; other < atomic_load(&index_high); other++)
        if (other != index && (index_used[other / 64] >> (other % 64) & 1) != 0)
            index_release(other);
    if (before.chunk != 0)
        atomic_store(&atomic_load(&index_tid[before.chunk])[before.pos], lock_reader.tid);
    pthread_mutex_init(&registry, NULL);
}

/* SPDX-License-Identifier: MIT */
/* Threads as the memory lock knows them: an index for each, and by it a slot in every lock. See reader.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "reader.h"

#include "futex.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

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
        lock_wake_writer(lock);
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
int reader_assign(void)
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
int reader_slot(struct memory_lock *lock, struct reader_slot **slot)
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

int reader_each_slot(struct memory_lock *lock, slot_visit visit, void *context)
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
            int result = visit(lock, &slots[pos], chunk_start(chunk) + pos, context);

            if (result != 0)
                return result;
        }
    }
    return 0;
}

pid_t reader_tid(uint32_t index)
{
    uint32_t chunk = chunk_of(index);
    _Atomic pid_t *tids = atomic_load(&index_tid[chunk]);

    return tids == NULL ? 0 : atomic_load(&tids[index - chunk_start(chunk)]);
}

/* ---- locks ---- */

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
        atomic_store(&lock->pending, 0);
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

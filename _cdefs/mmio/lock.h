/* SPDX-License-Identifier: MIT */
/*
 * The memory lock: many readers (register accesses), one writer (whoever takes the memory away).
 *
 * Each reading thread owns one cache line for each lock, its slot, so that readers never share a line.
 * The slot holds the nesting depth. A writer closes the gate, then looks at every slot; in those in use it sets WAITED,
 * which asks the reader to count itself out when it leaves, and the last one to do so wakes the writer.
 *
 * Memory order. Entry is a store to the slot followed by a load of the gate; a writer stores the gate
 * and then loads the slots: the pattern of Dekker's algorithm, for which nothing weaker than sequential
 * consistency on all four will do. No test shows this (x86 and ThreadSanitizer both miss a weaker
 * store), so do not let a green test weaken it. Leaving is a release, which the writer's load acquires.
 *
 * Plain C without Python: the benchmarks and the ThreadSanitizer test build this file by itself.
 */
#ifndef VFIO_USER_LOCK_H
#define VFIO_USER_LOCK_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define LOCK_LINE 64

/*
 * Slots come in chunks, each twice as large as the one before: 64, 128, ... so that 17 of them hold more
 * threads than Linux can have (PID_MAX_LIMIT, 4 Mi). Chunk 0 is always missing: a thread that has no
 * index yet points there, and one test finds both the new thread and the missing chunk.
 */
#ifndef LOCK_FIRST_CHUNK
#define LOCK_FIRST_CHUNK 64u
#endif
#ifndef LOCK_CHUNKS
#define LOCK_CHUNKS 18u
#endif

#define SLOT_WAITED 0x80000000u /* a writer waits for this slot */

/* The gate: zero lets readers in. Only GATE_WRITER belongs to the lock, the rest to the window. */
#define GATE_WRITER 0x01u  /* a writer holds the lock or drains it */
#define GATE_ZAPPED 0x02u  /* the memory was taken away */
#define GATE_FLAGGED 0x04u /* an access met a bus error; all-ones since */
#define GATE_CLOSED 0x08u  /* the window was closed */
#define GATE_FORKED 0x10u  /* this process is a child of the one that opened the window */

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

struct reader_slot {
    _Alignas(LOCK_LINE) _Atomic uint32_t word; /* depth, or'ed with SLOT_WAITED */
};

struct memory_lock {
    /* read by every reader, written by writers only */
    _Alignas(LOCK_LINE) _Atomic uint32_t gate;
    _Atomic(struct reader_slot *) chunk[LOCK_CHUNKS];
    /* written now and then: away from the line above */
    _Alignas(LOCK_LINE) _Atomic uint32_t pending; /* readers with WAITED that have not left */
    _Atomic uint32_t waiters;                     /* threads asleep on the gate */
    _Atomic pid_t owner;                          /* the writer's thread id, 0 when there is none */
    _Atomic int64_t closed_at;                    /* when it closed the gate, CLOCK_MONOTONIC in ns */
    uint32_t depth;                               /* write lock nesting; the owner's alone */
    struct memory_lock *next;                     /* all locks, for a thread that ends */
};

struct lock_holder {
    pid_t tid;
    bool writer;
    int64_t held_ns; /* at least this long: no clock runs in the read path */
};

/* What a thread knows of itself. Initial-exec where it is safe: no call, and usable in a handler. */
struct reader {
    size_t chunk, pos;     /* where its slot is in every lock */
    uint32_t sections;     /* explicit read sections it is in, over all locks */
    uint32_t writing;      /* locks that it has for writing */
    pid_t tid;
};

#ifdef __GLIBC__
#define LOCK_TLS __thread __attribute__((tls_model("initial-exec")))
#else
/* musl refuses initial-exec in a loaded library, and sets thread memory up at load, so a handler may use it */
#define LOCK_TLS __thread
#endif

extern LOCK_TLS struct reader lock_reader __attribute__((visibility("hidden")));

enum { LOCK_ENTERED = 0, LOCK_NESTED = 1 }; /* or a negative errno */

int64_t lock_now(void);
pid_t lock_tid(void);
void lock_init(struct memory_lock *lock);
/* Open the gate and empty every slot: for a lock that nobody uses any more. */
void lock_reset(struct memory_lock *lock);

/* Reader, unusual cases: first time here, nested, the writer itself; -EBUSY when the gate is closed. */
int lock_enter_slow(struct memory_lock *lock, struct reader_slot **slot);
/* Count out a reader that left a slot with WAITED. */
void lock_wake_writer(struct memory_lock *lock);
int lock_acquire(struct memory_lock *lock);
int lock_release(struct memory_lock *lock);
uint32_t lock_read_depth(struct memory_lock *lock);

/* Sleep while the gate has this value, at most until the deadline: 0 (look again), -ETIMEDOUT or -EINTR. */
int lock_gate_sleep(struct memory_lock *lock, uint32_t value, int64_t deadline);
void lock_gate_set(struct memory_lock *lock, uint32_t bits);
void lock_gate_clear(struct memory_lock *lock, uint32_t bits);

/*
 * Writer. begin() closes the gate: 0, or 1 when this thread had it already (counted), -EDEADLK for a thread
 * that has any lock for reading or another one for writing, -ETIMEDOUT, -EINTR. drain() waits for the readers: 0, -ETIMEDOUT, -EINTR; both may
 * be called again after -EINTR. end() undoes one begin(), whether drained or not; -EPERM for another thread.
 * try() is both without sleeping, also for a thread that writes elsewhere: -EBUSY when somebody is in.
 */
int lock_write_begin(struct memory_lock *lock, int64_t deadline);
int lock_write_drain(struct memory_lock *lock, int64_t deadline);
int lock_write_end(struct memory_lock *lock);
int lock_write_try(struct memory_lock *lock);
bool lock_write_owned(struct memory_lock *lock);

/* Who is in: fills at most capacity entries, returns how many there are. */
size_t lock_holders(struct memory_lock *lock, struct lock_holder *out, size_t capacity);

/* Round a fork: hold the registry still, let go, and forget the threads that the child does not have. */
void lock_fork_prepare(void);
void lock_fork_parent(void);
void lock_fork_child(void);

static inline void lock_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield" ::: "memory");
#else
    atomic_signal_fence(memory_order_seq_cst);
#endif
}

static inline struct reader_slot *lock_slot(struct memory_lock *lock)
{
    struct reader_slot *slots = atomic_load_explicit(&lock->chunk[lock_reader.chunk], memory_order_acquire);

    return slots == NULL ? NULL : slots + lock_reader.pos;
}

static inline void lock_leave(struct memory_lock *lock, struct reader_slot *slot)
{
    if (slot == NULL)
        return;
    /* an exchange, not a store: a writer may set WAITED at any moment and must not be forgotten */
    if (unlikely(atomic_exchange_explicit(&slot->word, 0, memory_order_release) & SLOT_WAITED))
        lock_wake_writer(lock);
}

/* Enter in the usual case: this thread has a slot, is not inside, and the gate is open. NULL in any other. */
static inline struct reader_slot *lock_enter_fast(struct memory_lock *lock)
{
    struct reader_slot *mine = lock_slot(lock);

    /* the first look at the gate keeps refused readers from disturbing a writer that drains */
    if (unlikely(mine == NULL) || unlikely(atomic_load_explicit(&mine->word, memory_order_relaxed) != 0) ||
        unlikely(atomic_load_explicit(&lock->gate, memory_order_relaxed) != 0))
        return NULL;
    atomic_store_explicit(&mine->word, 1, memory_order_seq_cst);
    if (likely(atomic_load_explicit(&lock->gate, memory_order_seq_cst) == 0))
        return mine;
    lock_leave(lock, mine);
    return NULL;
}

/*
 * Enter a read section for the time of one C call. LOCK_NESTED: this thread is in a section already,
 * which covers the call, and lock_leave() has nothing to do (*slot is NULL).
 */
static inline int lock_enter(struct memory_lock *lock, struct reader_slot **slot)
{
    *slot = lock_enter_fast(lock);
    return likely(*slot != NULL) ? LOCK_ENTERED : lock_enter_slow(lock, slot);
}

#endif

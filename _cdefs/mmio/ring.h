/* SPDX-License-Identifier: MIT */
/*
 * A submission ring and a completion ring in memory that a device shares, and the commands that are in flight between
 * them. Such devices differ in the size of their entries and in where the identifier and the phase are; the rest is the
 * same: commands are written at the tail, the device answers at its own pace and in any order, and an answer is new when
 * its phase bit is the one of this turn of the ring.
 *
 * Each command has a slot. An identifier is the slot's number with a generation above it, which changes whenever the slot
 * is given out again: an answer that comes twice, or for a command of long ago, is not taken for another command's. The
 * identifier 0xffff never occurs; NVMe uses it for "none".
 *
 * Plain C without Python; who calls has a lock.
 */
#ifndef VFIO_USER_RING_H
#define VFIO_USER_RING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define RING_ENTRY_MAX 256u /* bytes of one entry */
#define RING_NONE UINT32_MAX

struct ring_layout {
    uint32_t entries; /* of each ring */
    uint32_t submission_size, completion_size;
    uint32_t id_at;      /* of the identifier in a submission, 16 bits little-endian, as all fields here */
    uint32_t done_id_at; /* of the identifier in a completion */
    uint32_t phase_at;   /* of the word with the phase in a completion */
    uint32_t phase_mask, error_mask; /* the phase, and what is set when a command failed, in that word */
    uint32_t match_at, match; /* a further word that every completion must have; RING_NONE for none */
};

enum slot_state { SLOT_FREE, SLOT_FLYING, SLOT_DONE };

/* What commands that were submitted together keep alive. */
struct ring_batch {
    void *keep;
    uint32_t left; /* commands whose outcome was not taken yet */
    struct ring_batch *next, *previous;
};

struct ring_slot {
    uint64_t cookie;
    void *holder; /* who is told of it, if it is owned; else its batch, or NULL */
    uint16_t id, next_id;
    uint8_t state;
    bool owned;
};

/* Commands that are done and whose outcome was not taken: slot numbers, first in, first out. */
struct ring_done {
    uint16_t *slots;
    uint32_t mask;
    _Atomic uint32_t first, last; /* never reduced; looked at without the lock too */
};

struct ring {
    struct ring_layout layout;
    uint8_t *submissions, *completions; /* shared with the device, which may write anything there */
    uint32_t tail;                      /* where the next command goes */
    _Atomic uint32_t place;             /* the next completion to look at; RING_PHASE is the phase of a new one */
    uint32_t unacknowledged;            /* completions that were taken in and that the device was not told of */
    uint32_t capacity, shift, generations;
    uint32_t num_free, num_flying;
    uint16_t *free; /* slot numbers, a stack; those that were given out last are still above its top */
    struct ring_slot *slots;
    uint8_t *outcomes; /* a completion for each slot */
    struct ring_done owned, cookies;
    uint64_t num_failed;
    struct ring_batch *batches, *ended; /* of commands in flight; of commands that have all been taken */
    bool strayed, untold;          /* a completion was for a command that was not in flight; nobody has asked yet */
    uint8_t stray[RING_ENTRY_MAX]; /* the first such that nobody was told of */
};

#define RING_PHASE 0x80000000u

/* The layout must be sound; memory is the caller's. 0 or -ENOMEM. */
int ring_init(struct ring *ring, const struct ring_layout *layout, uint8_t *submissions, uint8_t *completions);
void ring_free(struct ring *ring);
/* Start over, as for a queue that the device is told of again: nothing may be in flight. */
void ring_reset(struct ring *ring);

/*
 * Write commands at the tail; there must be as many free slots. The k-th of them has slot ring->free[num_free_before - 1 - k].
 * The cookies are 64-bit numbers at any address, and with pick the rows of the entries that are meant.
 */
void ring_put_cookies(struct ring *ring, const uint8_t *entries, const uint8_t *cookies, size_t count, bool pick,
                      struct ring_batch *batch);
void ring_put_owned(struct ring *ring, const uint8_t *entry, void *owner);
/* Undo the last puts, because the doorbell could not be rung. */
void ring_take_back(struct ring *ring, size_t count, uint32_t tail);

/* Are there so many completions (from 1 on) that were not looked at yet? Needs no lock. */
bool ring_pending(struct ring *ring, uint32_t least);
/* Where cookies and completions of commands go at once; completions may be NULL. */
struct ring_sink {
    uint8_t *cookies, *completions;
    size_t count, room;
};

/*
 * Take in all new completions; returns how many entries of the ring were consumed. Commands with cookies go to the sink as
 * long as it has room, all else waits to be taken. Whoever gives a sink has taken before what was waiting.
 */
uint32_t ring_scan(struct ring *ring, struct ring_sink *sink);
/* End all that is in flight with this outcome, for a device that has forgotten them. */
void ring_end_all(struct ring *ring, const void *completion);

/* The slot of the next command that is done, or RING_NONE; its outcome is valid until ring_release(). */
uint32_t ring_next(struct ring_done *done);
void ring_release(struct ring *ring, uint32_t slot);
/* Put the outcomes of commands with cookies that wait into the sink, as many as it has room for. */
void ring_pop_cookies(struct ring *ring, struct ring_sink *sink);

static inline uint32_t ring_count(const struct ring_done *done)
{
    return atomic_load_explicit(&done->last, memory_order_relaxed) - atomic_load_explicit(&done->first, memory_order_relaxed);
}

static inline const uint8_t *ring_outcome(const struct ring *ring, uint32_t slot)
{
    return ring->outcomes + (size_t)slot * ring->layout.completion_size;
}

#endif

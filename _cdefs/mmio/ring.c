/* SPDX-License-Identifier: MIT */
#include "ring.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "io.h"
#include "lock.h"

#define ID_BITS 16u

static uint16_t load16(const uint8_t *at)
{
    uint16_t value;

    memcpy(&value, at, sizeof(value));
    return le16toh(value);
}

/* Exactly once, from memory that changes by itself; at any address. */
static uint16_t read16(const uint8_t *at)
{
    uint16_t value = load16(at);

    atomic_signal_fence(memory_order_seq_cst);
    return value;
}

static void store16(uint8_t *at, uint16_t value)
{
    value = htole16(value);
    memcpy(at, &value, sizeof(value));
}

/* The usual sizes are known to the compiler: a call for each entry would cost more than all the rest. */
static inline void copy(uint8_t *to, const void *from, uint32_t size)
{
    switch (size) {
    case 16:
        memcpy(to, from, 16);
        break;
    case 32:
        memcpy(to, from, 32);
        break;
    case 64:
        memcpy(to, from, 64);
        break;
    default:
        memcpy(to, from, size);
    }
}

/* ---- life ---- */

static bool done_init(struct ring_done *done, uint32_t capacity)
{
    uint32_t room = 1;

    while (room < capacity)
        room <<= 1;
    done->mask = room - 1;
    done->slots = calloc(room, sizeof(*done->slots));
    return done->slots != NULL;
}

int ring_init(struct ring *ring, const struct ring_layout *layout, uint8_t *submissions, uint8_t *completions)
{
    *ring = (struct ring){.layout = *layout, .submissions = submissions, .completions = completions};
    ring->capacity = layout->entries - 1;
    while (ring->capacity >> ring->shift != 0)
        ring->shift++;
    /* one slot number stays unused, so that no identifier has all bits set */
    ring->generations = (1u << (ID_BITS - ring->shift)) - 1;
    ring->slots = calloc(ring->capacity, sizeof(*ring->slots));
    ring->outcomes = calloc(ring->capacity, layout->completion_size);
    ring->free = calloc(ring->capacity, sizeof(*ring->free));
    if (ring->slots == NULL || ring->outcomes == NULL || ring->free == NULL || !done_init(&ring->owned, ring->capacity) ||
        !done_init(&ring->cookies, ring->capacity)) {
        ring_free(ring);
        return -ENOMEM;
    }
    for (uint32_t slot = 0; slot < ring->capacity; slot++) {
        ring->slots[slot].next_id = (uint16_t)slot;
        ring->free[ring->capacity - 1 - slot] = (uint16_t)slot;
    }
    ring->num_free = ring->capacity;
    atomic_store(&ring->place, RING_PHASE);
    return 0;
}

void ring_free(struct ring *ring)
{
    free(ring->slots);
    free(ring->outcomes);
    free(ring->free);
    free(ring->owned.slots);
    free(ring->cookies.slots);
    *ring = (struct ring){0};
}

void ring_reset(struct ring *ring)
{
    memset(ring->submissions, 0, (size_t)ring->layout.entries * ring->layout.submission_size);
    memset(ring->completions, 0, (size_t)ring->layout.entries * ring->layout.completion_size);
    ring->tail = 0;
    ring->unacknowledged = 0;
    ring->strayed = ring->untold = false;
    atomic_store(&ring->place, RING_PHASE);
}

/* ---- submitting ---- */

static inline void put(struct ring *ring, const uint8_t *entry, uint64_t cookie, void *holder, bool owned)
{
    uint32_t index = ring->free[--ring->num_free];
    struct ring_slot *slot = &ring->slots[index];
    uint8_t *at = ring->submissions + (size_t)ring->tail * ring->layout.submission_size;
    uint16_t id = slot->next_id;

    copy(at, entry, ring->layout.submission_size);
    store16(at + ring->layout.id_at, id);
    *slot = (struct ring_slot){
        .cookie = cookie,
        .holder = holder,
        .id = id,
        .next_id = (uint16_t)((((id >> ring->shift) + 1) & ring->generations) << ring->shift | index),
        .state = SLOT_FLYING,
        .owned = owned,
    };
    ring->num_flying++;
    ring->tail = ring->tail + 1 == ring->layout.entries ? 0 : ring->tail + 1;
}

void ring_put_owned(struct ring *ring, const uint8_t *entry, void *owner)
{
    put(ring, entry, 0, owner, true);
}

void ring_put_cookies(struct ring *ring, const uint8_t *entries, const uint8_t *cookies, size_t count, bool pick,
                      struct ring_batch *batch)
{
    for (size_t i = 0; i < count; i++) {
        uint64_t cookie;

        memcpy(&cookie, cookies + i * sizeof(cookie), sizeof(cookie));
        put(ring, entries + (pick ? cookie : i) * ring->layout.submission_size, cookie, batch, false);
    }
}

static inline void free_slot(struct ring *ring, uint32_t index)
{
    ring->slots[index].state = SLOT_FREE;
    ring->slots[index].holder = NULL;
    ring->free[ring->num_free++] = (uint16_t)index;
}

void ring_take_back(struct ring *ring, size_t count, uint32_t tail)
{
    ring->num_flying -= (uint32_t)count;
    while (count-- > 0)
        free_slot(ring, ring->free[ring->num_free]);
    ring->tail = tail;
}

/* ---- completing ---- */

static inline void finish(struct ring *ring, uint32_t index, const uint8_t *completion)
{
    struct ring_slot *slot = &ring->slots[index];
    struct ring_done *done = slot->owned ? &ring->owned : &ring->cookies;
    uint8_t *outcome = ring->outcomes + (size_t)index * ring->layout.completion_size;
    uint32_t last = atomic_load_explicit(&done->last, memory_order_relaxed);

    copy(outcome, completion, ring->layout.completion_size);
    if (unlikely((load16(outcome + ring->layout.phase_at) & ring->layout.error_mask) != 0))
        ring->num_failed++;
    slot->state = SLOT_DONE;
    ring->num_flying--;
    done->slots[last & done->mask] = (uint16_t)index;
    atomic_store_explicit(&done->last, last + 1, memory_order_relaxed);
}

static inline void leave_batch(struct ring *ring, struct ring_batch *batch)
{
    if (batch == NULL || --batch->left != 0)
        return;
    if (batch->previous != NULL)
        batch->previous->next = batch->next;
    else
        ring->batches = batch->next;
    if (batch->next != NULL)
        batch->next->previous = batch->previous;
    batch->next = ring->ended;
    ring->ended = batch;
}

void ring_release(struct ring *ring, uint32_t index)
{
    struct ring_slot *slot = &ring->slots[index];
    struct ring_batch *batch = slot->owned ? NULL : slot->holder;

    free_slot(ring, index);
    leave_batch(ring, batch);
}

static inline void give(struct ring *ring, uint32_t index, const uint8_t *completion, struct ring_sink *sink)
{
    memcpy(sink->cookies + sink->count * sizeof(uint64_t), &ring->slots[index].cookie, sizeof(uint64_t));
    if (sink->completions != NULL)
        copy(sink->completions + sink->count * ring->layout.completion_size, completion, ring->layout.completion_size);
    sink->count++;
    sink->room--;
    ring_release(ring, index);
}

static bool is_new(const struct ring *ring, uint32_t place)
{
    const uint8_t *at = ring->completions + (size_t)(place & ~RING_PHASE) * ring->layout.completion_size;

    /* The read is ordered before those of the rest of the entry, which the device has written before. */
    return ((io_read16(at + ring->layout.phase_at) & ring->layout.phase_mask) != 0) == ((place & RING_PHASE) != 0);
}

bool ring_pending(struct ring *ring, uint32_t least)
{
    uint32_t place = atomic_load_explicit(&ring->place, memory_order_relaxed), last;

    if (unlikely(least > ring->layout.entries))
        return false;
    /* The device writes them in order: the last of so many is new only when all are. */
    last = (place & ~RING_PHASE) + (least - 1);
    if (last >= ring->layout.entries)
        return is_new(ring, (last - ring->layout.entries) | (~place & RING_PHASE));
    return is_new(ring, last | (place & RING_PHASE));
}

/* The device can write to the ring at any time: what is decided by is read once. */
static inline void take_in(struct ring *ring, uint32_t place, struct ring_sink *sink)
{
    const struct ring_layout *layout = &ring->layout;
    const uint8_t *at = ring->completions + (size_t)(place & ~RING_PHASE) * layout->completion_size;
    uint16_t id = read16(at + layout->done_id_at);
    uint32_t index = id & ((1u << ring->shift) - 1);
    bool known = index < ring->capacity && ring->slots[index].state == SLOT_FLYING && ring->slots[index].id == id &&
                 (layout->match_at == RING_NONE || read16(at + layout->match_at) == layout->match);

    if (likely(known && sink->room != 0 && !ring->slots[index].owned)) {
        ring->num_flying--;
        if (unlikely((load16(at + layout->phase_at) & layout->error_mask) != 0))
            ring->num_failed++;
        give(ring, index, at, sink);
    } else if (known) {
        finish(ring, index, at);
    } else if (!ring->untold) {
        ring->strayed = ring->untold = true;
        memcpy(ring->stray, at, layout->completion_size);
    }
}

uint32_t ring_scan(struct ring *ring, struct ring_sink *sink)
{
    uint32_t place = atomic_load_explicit(&ring->place, memory_order_relaxed), looked_at = 0;

    /* A device that writes as fast as this reads must not keep it here for ever. */
    while (looked_at < ring->layout.entries && is_new(ring, place)) {
        take_in(ring, place, sink);
        looked_at++;
        place++;
        if ((place & ~RING_PHASE) == ring->layout.entries)
            place = (place & RING_PHASE) ^ RING_PHASE;
    }
    atomic_store_explicit(&ring->place, place, memory_order_relaxed);
    ring->unacknowledged += looked_at;
    return looked_at;
}

void ring_end_all(struct ring *ring, const void *completion)
{
    uint8_t outcome[RING_ENTRY_MAX];

    memcpy(outcome, completion, ring->layout.completion_size);
    for (uint32_t index = 0; index < ring->capacity; index++) {
        if (ring->slots[index].state != SLOT_FLYING)
            continue;
        store16(outcome + ring->layout.done_id_at, ring->slots[index].id);
        finish(ring, index, outcome);
    }
}

uint32_t ring_next(struct ring_done *done)
{
    uint32_t first = atomic_load_explicit(&done->first, memory_order_relaxed);

    if (first == atomic_load_explicit(&done->last, memory_order_relaxed))
        return RING_NONE;
    atomic_store_explicit(&done->first, first + 1, memory_order_relaxed);
    return done->slots[first & done->mask];
}

void ring_pop_cookies(struct ring *ring, struct ring_sink *sink)
{
    while (sink->room != 0) {
        uint32_t index = ring_next(&ring->cookies);

        if (index == RING_NONE)
            break;
        give(ring, index, ring_outcome(ring, index), sink);
    }
}

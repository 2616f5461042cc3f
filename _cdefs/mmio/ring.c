/* SPDX-License-Identifier: MIT */
#include "ring.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "io.h"

#define ID_BITS 16u

static uint16_t load16(const uint8_t *at)
{
    uint16_t value;

    memcpy(&value, at, sizeof(value));
    return le16toh(value);
}

static void store16(uint8_t *at, uint16_t value)
{
    value = htole16(value);
    memcpy(at, &value, sizeof(value));
}

/* ---- life ---- */

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
    if (ring->slots == NULL || ring->outcomes == NULL) {
        ring_free(ring);
        return -ENOMEM;
    }
    ring->free = RING_NONE;
    for (uint32_t slot = ring->capacity; slot-- > 0;) {
        ring->slots[slot].next_id = (uint16_t)slot;
        ring->slots[slot].next = ring->free;
        ring->free = slot;
    }
    ring->num_free = ring->capacity;
    ring->owned.first = ring->owned.last = ring->cookies.first = ring->cookies.last = RING_NONE;
    atomic_store(&ring->place, RING_PHASE);
    return 0;
}

void ring_free(struct ring *ring)
{
    free(ring->slots);
    free(ring->outcomes);
    ring->slots = NULL;
    ring->outcomes = NULL;
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

uint32_t ring_put(struct ring *ring, const void *entry, uint64_t cookie, void *owner, struct ring_batch *batch,
                  uint32_t previous)
{
    uint32_t index = ring->free;
    struct ring_slot *slot = &ring->slots[index];
    uint8_t *at = ring->submissions + (size_t)ring->tail * ring->layout.submission_size;

    memcpy(at, entry, ring->layout.submission_size);
    store16(at + ring->layout.id_at, slot->next_id);
    ring->free = slot->next;
    ring->num_free--;
    ring->num_flying++;
    slot->id = slot->next_id;
    slot->next_id = (uint16_t)((((slot->id >> ring->shift) + 1) & ring->generations) << ring->shift | index);
    slot->cookie = cookie;
    slot->owner = owner;
    slot->batch = batch;
    slot->next = previous;
    slot->state = SLOT_FLYING;
    ring->tail = ring->tail + 1 == ring->layout.entries ? 0 : ring->tail + 1;
    return index;
}

static void free_slot(struct ring *ring, uint32_t index)
{
    struct ring_slot *slot = &ring->slots[index];

    slot->state = SLOT_FREE;
    slot->owner = NULL;
    slot->batch = NULL;
    slot->next = ring->free;
    ring->free = index;
    ring->num_free++;
}

void ring_take_back(struct ring *ring, uint32_t last, uint32_t tail)
{
    while (last != RING_NONE) {
        uint32_t previous = ring->slots[last].next;

        free_slot(ring, last);
        ring->num_flying--;
        last = previous;
    }
    ring->tail = tail;
}

/* ---- completing ---- */

/* Only who has the lock writes. */
static void count_by(struct ring_done *done, int32_t change)
{
    uint32_t count = atomic_load_explicit(&done->count, memory_order_relaxed) + (uint32_t)change;

    atomic_store_explicit(&done->count, count, memory_order_relaxed);
}

static void push(struct ring *ring, struct ring_done *done, uint32_t index)
{
    ring->slots[index].next = RING_NONE;
    if (done->last == RING_NONE)
        done->first = index;
    else
        ring->slots[done->last].next = index;
    done->last = index;
    count_by(done, 1);
}

static void finish(struct ring *ring, uint32_t index, const uint8_t *completion)
{
    struct ring_slot *slot = &ring->slots[index];

    memcpy(ring->outcomes + (size_t)index * ring->layout.completion_size, completion, ring->layout.completion_size);
    if ((load16(completion + ring->layout.phase_at) & ring->layout.error_mask) != 0)
        ring->num_failed++;
    slot->state = SLOT_DONE;
    ring->num_flying--;
    push(ring, slot->owner != NULL ? &ring->owned : &ring->cookies, index);
}

static bool is_new(const struct ring *ring, uint32_t place)
{
    const uint8_t *at = ring->completions + (size_t)(place & ~RING_PHASE) * ring->layout.completion_size;

    /* The read is ordered before those of the rest of the entry, which the device has written before. */
    return ((io_read16(at + ring->layout.phase_at) & ring->layout.phase_mask) != 0) == ((place & RING_PHASE) != 0);
}

bool ring_pending(struct ring *ring)
{
    return is_new(ring, atomic_load_explicit(&ring->place, memory_order_relaxed));
}

static void take_in(struct ring *ring, uint32_t place)
{
    const struct ring_layout *layout = &ring->layout;
    uint8_t completion[RING_ENTRY_MAX]; /* read once: the device can write to the ring at any time */
    uint32_t index;
    uint16_t id;

    memcpy(completion, ring->completions + (size_t)(place & ~RING_PHASE) * layout->completion_size, layout->completion_size);
    id = load16(completion + layout->done_id_at);
    index = id & ((1u << ring->shift) - 1);
    if (index < ring->capacity && ring->slots[index].state == SLOT_FLYING && ring->slots[index].id == id &&
        (layout->match_at == RING_NONE || load16(completion + layout->match_at) == layout->match)) {
        finish(ring, index, completion);
    } else if (!ring->untold) {
        ring->strayed = ring->untold = true;
        memcpy(ring->stray, completion, layout->completion_size);
    }
}

uint32_t ring_scan(struct ring *ring)
{
    uint32_t place = atomic_load_explicit(&ring->place, memory_order_relaxed), looked_at = 0;

    /* A device that writes as fast as this reads must not keep it here for ever. */
    while (looked_at < ring->layout.entries && is_new(ring, place)) {
        take_in(ring, place);
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

uint32_t ring_next(struct ring *ring, struct ring_done *done)
{
    uint32_t index = done->first;

    if (index == RING_NONE)
        return RING_NONE;
    done->first = ring->slots[index].next;
    if (done->first == RING_NONE)
        done->last = RING_NONE;
    count_by(done, -1);
    return index;
}

void ring_release(struct ring *ring, uint32_t index)
{
    struct ring_batch *batch = ring->slots[index].batch;

    free_slot(ring, index);
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

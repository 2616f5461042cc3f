/* SPDX-License-Identifier: MIT */
/* Methods of RingPair: taking in what the device has done, and waiting for it. */
#include "ring_type.h"

#include <string.h>

/* ---- waiting ---- */

#define LOOKS 256 /* between two looks at the clock */

struct want {
    bool cookies;   /* commands with cookies, or owned ones */
    uint32_t least; /* how many; those that were not looked at yet count whatever they are */
};

static bool enough(struct pair_object *self, const struct want *want)
{
    const struct ring_done *done = want->cookies ? &self->ring.cookies : &self->ring.owned;
    uint32_t waiting = ring_count(done);

    return waiting >= want->least || ring_pending(&self->ring, want->least - waiting);
}

static bool spin_slice(struct pair_object *self, const struct want *want, int64_t until)
{
    for (;;) {
        for (int i = 0; i < LOOKS; i++) {
            if (enough(self, want))
                return true;
            lock_relax();
        }
        if (!atomic_load(&self->running) || lock_now() >= until)
            return false;
    }
}

/* 1 when there is enough, 0 when the time is over or the rings are stopped, -1 with an exception set. */
static int spin(struct pair_object *self, const struct want *want, int64_t deadline)
{
    bool found = enough(self, want);
    int64_t now;

    while (!found && atomic_load(&self->running) && (now = lock_now()) < deadline) {
        int64_t until = now + CORE_SLICE_NS < deadline ? now + CORE_SLICE_NS : deadline;

        Py_BEGIN_ALLOW_THREADS
        found = spin_slice(self, want, until);
        Py_END_ALLOW_THREADS
        if (PyErr_CheckSignals() != 0)
            return -1;
    }
    return found;
}

PyObject *pair_spin(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    struct pair_object *self = (struct pair_object *)object;
    struct want want = {.least = 1};
    int64_t deadline;
    int found;

    if (nargs != 2) {
        PyErr_Format(PyExc_TypeError, "spin() takes seconds, and whether cookies are waited for (%zd given)", nargs);
        return NULL;
    }
    want.cookies = PyObject_IsTrue(args[1]) == 1;
    if (!core_deadline(args[0], &deadline))
        return NULL;
    found = spin(self, &want, deadline);
    return found < 0 ? NULL : PyBool_FromLong(found);
}

/* The last arguments of reap() and each(): how many are wanted, and how long they are looked for. */
static bool spin_as_asked(struct pair_object *self, PyObject *least, PyObject *seconds)
{
    struct want want = {.cookies = true};
    int64_t deadline;
    uint64_t number;

    if (!core_unsigned(least, RING_PHASE - 1, "the least number", &number) || !core_deadline(seconds, &deadline))
        return false;
    pair_lock(self);
    /* More than are in flight will not come. */
    want.least = self->ring.num_flying + ring_count(&self->ring.cookies);
    pair_unlock(self);
    if (number < want.least)
        want.least = (uint32_t)number;
    return want.least == 0 || spin(self, &want, deadline) >= 0;
}

/* ---- completing ---- */

static bool scan(struct pair_object *self)
{
    struct ring_sink none = {0};

    ring_scan(&self->ring, &none);
    return self->lazy || pair_acknowledge(self);
}

PyObject *pair_scan(PyObject *object, PyObject *ignored)
{
    struct pair_object *self = (struct pair_object *)object;
    bool good;

    (void)ignored;
    pair_lock(self);
    good = scan(self);
    pair_unlock(self);
    return good ? Py_NewRef(Py_None) : NULL;
}

/* (owner, outcome) of an owned command that is done. */
static PyObject *owned_item(struct ring *ring, uint32_t slot)
{
    PyObject *owner = ring->slots[slot].holder;
    PyObject *outcome = PyBytes_FromStringAndSize((const char *)ring_outcome(ring, slot), ring->layout.completion_size);
    PyObject *item = outcome == NULL ? NULL : PyTuple_Pack(2, owner, outcome);

    Py_XDECREF(outcome);
    return item;
}

PyObject *pair_take(PyObject *object, PyObject *ignored)
{
    struct pair_object *self = (struct pair_object *)object;
    struct ring *ring = &self->ring;
    PyObject *list = PyList_New(0);

    (void)ignored;
    pair_lock(self);
    while (list != NULL && ring_count(&ring->owned) != 0) {
        uint32_t slot = ring->owned.slots[atomic_load(&ring->owned.first) & ring->owned.mask];
        PyObject *owner = ring->slots[slot].holder, *item = owned_item(ring, slot);

        /* Only what is in the list is taken out of the ring. */
        if (item == NULL || PyList_Append(list, item) != 0) {
            Py_CLEAR(list);
        } else {
            ring_next(&ring->owned);
            ring_release(ring, slot);
            Py_DECREF(owner); /* not the last one: the list has it */
        }
        Py_XDECREF(item);
    }
    pair_unlock(self);
    return list;
}

/* Fill the sink; the caller has the lock. What the device could not be told now, it is told by the next call. */
static bool fill(struct pair_object *self, struct ring_sink *sink)
{
    ring_pop_cookies(&self->ring, sink);
    ring_scan(&self->ring, sink);
    if (self->lazy || pair_acknowledge(self))
        return true;
    if (sink->count != 0)
        PyErr_Clear();
    return sink->count != 0;
}

PyObject *pair_reap(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    struct pair_object *self = (struct pair_object *)object;
    Py_buffer cookies = {0}, outcomes = {0};
    struct ring_sink sink = {0};
    bool good = false;

    if (nargs != 2 && nargs != 4) {
        PyErr_Format(PyExc_TypeError,
                     "reap() takes a buffer for cookies and one for completions, and may take the least number of them "
                     "and seconds (%zd given)",
                     nargs);
        return NULL;
    }
    if (nargs == 4 && !spin_as_asked(self, args[2], args[3]))
        return NULL;
    if (PyObject_GetBuffer(args[0], &cookies, PyBUF_WRITABLE) == 0 &&
        (args[1] == Py_None || PyObject_GetBuffer(args[1], &outcomes, PyBUF_WRITABLE) == 0)) {
        size_t most = (size_t)cookies.len / sizeof(uint64_t);
        size_t room = outcomes.obj == NULL ? most : (size_t)outcomes.len / self->ring.layout.completion_size;

        sink = (struct ring_sink){cookies.buf, outcomes.obj == NULL ? NULL : outcomes.buf, 0, room < most ? room : most};
        pair_lock(self);
        good = fill(self, &sink);
        pair_unlock(self);
    }
    PyBuffer_Release(&cookies);
    if (outcomes.obj != NULL)
        PyBuffer_Release(&outcomes);
    return good ? PyLong_FromSize_t(sink.count) : NULL;
}

/* The cookie and the word with the phase of the next command that is done; the lock is not held while Python runs. */
static bool pop_one(struct pair_object *self, uint64_t *cookie, uint32_t *word)
{
    struct ring *ring = &self->ring;
    uint16_t status;
    uint32_t slot;

    pair_lock(self);
    slot = ring_next(&ring->cookies);
    if (slot != RING_NONE) {
        *cookie = ring->slots[slot].cookie;
        memcpy(&status, ring_outcome(ring, slot) + ring->layout.phase_at, sizeof(status));
        *word = le16toh(status) & ~ring->layout.phase_mask;
        ring_release(ring, slot);
    }
    pair_unlock(self);
    return slot != RING_NONE;
}

PyObject *pair_each(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    struct pair_object *self = (struct pair_object *)object;
    size_t ready, count = 0;
    bool good;

    if (nargs != 1 && nargs != 3) {
        PyErr_Format(PyExc_TypeError,
                     "each() takes a function, and may take the least number of commands and seconds (%zd given)", nargs);
        return NULL;
    }
    if (nargs == 3 && !spin_as_asked(self, args[1], args[2]))
        return NULL;
    pair_lock(self);
    good = scan(self);
    ready = ring_count(&self->ring.cookies); /* what callbacks submit is for the next call */
    pair_unlock(self);
    while (good && count < ready) {
        uint64_t cookie;
        uint32_t word;

        if (!pop_one(self, &cookie, &word))
            break;
        count++;
        PyObject *first = PyLong_FromUnsignedLongLong(cookie), *second = PyLong_FromUnsignedLong(word);
        PyObject *result = first == NULL || second == NULL
                               ? NULL
                               : PyObject_CallFunctionObjArgs(args[0], first, second, NULL);

        Py_XDECREF(first);
        Py_XDECREF(second);
        Py_XDECREF(result);
        good = result != NULL;
    }
    return good ? PyLong_FromSize_t(count) : NULL;
}

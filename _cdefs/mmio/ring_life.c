/* SPDX-License-Identifier: MIT */
/* Methods of RingPair: its lock, what happens to the whole queue, and counters. */
#include "ring_type.h"

#include "futex.h"

#include <stdlib.h>

/* ---- the lock ---- */

enum { FREE, HELD, WAITED_FOR };

/* Not one of Python's: those look at the clock each time, which costs as much as two commands. */
void pair_lock(struct pair_object *self)
{
    uint32_t was = FREE;

    if (atomic_compare_exchange_strong(&self->lock, &was, HELD))
        return;
    Py_BEGIN_ALLOW_THREADS
    while (atomic_exchange(&self->lock, WAITED_FOR) != FREE)
        futex_wait(&self->lock, WAITED_FOR, INT64_MAX);
    Py_END_ALLOW_THREADS
}

void pair_unlock(struct pair_object *self)
{
    struct ring_batch *ended = self->ring.ended;

    self->ring.ended = NULL;
    if (atomic_exchange(&self->lock, FREE) == WAITED_FOR)
        futex_wake_all(&self->lock);
    while (ended != NULL) { /* without the lock: what is let go of may run any code */
        struct ring_batch *next = ended->next;

        Py_DECREF((PyObject *)ended->keep);
        free(ended);
        ended = next;
    }
}

/* ---- life of the queue ---- */

PyObject *pair_start(PyObject *object, PyObject *ignored)
{
    (void)ignored;
    atomic_store(&((struct pair_object *)object)->running, true);
    Py_RETURN_NONE;
}

PyObject *pair_stop(PyObject *object, PyObject *ignored)
{
    struct pair_object *self = (struct pair_object *)object;

    (void)ignored;
    pair_lock(self); /* who is submitting has handed over before this returns */
    atomic_store(&self->running, false);
    pair_unlock(self);
    Py_RETURN_NONE;
}

PyObject *pair_reset(PyObject *object, PyObject *ignored)
{
    struct pair_object *self = (struct pair_object *)object;
    bool busy;

    (void)ignored;
    pair_lock(self);
    busy = atomic_load(&self->running) || self->ring.num_flying != 0;
    if (!busy)
        ring_reset(&self->ring);
    pair_unlock(self);
    if (!busy)
        Py_RETURN_NONE;
    PyErr_SetString(core_errors.argument, "rings are reset while they are stopped and nothing is in flight");
    return NULL;
}

PyObject *pair_end_all(PyObject *object, PyObject *completion)
{
    struct pair_object *self = (struct pair_object *)object;
    Py_buffer outcome;
    uint32_t count;

    if (PyObject_GetBuffer(completion, &outcome, PyBUF_SIMPLE) != 0)
        return NULL;
    if ((size_t)outcome.len != self->ring.layout.completion_size) {
        PyErr_Format(core_errors.bounds, "a completion has %u bytes, not %zd", self->ring.layout.completion_size, outcome.len);
        PyBuffer_Release(&outcome);
        return NULL;
    }
    pair_lock(self);
    count = self->ring.num_flying;
    ring_end_all(&self->ring, outcome.buf);
    pair_unlock(self);
    PyBuffer_Release(&outcome);
    return PyLong_FromUnsignedLong(count);
}

PyObject *pair_flying(PyObject *object, PyObject *ignored)
{
    struct pair_object *self = (struct pair_object *)object;
    PyObject *ids = PyList_New(0);

    (void)ignored;
    pair_lock(self);
    for (uint32_t slot = 0; ids != NULL && slot < self->ring.capacity; slot++) {
        if (self->ring.slots[slot].state != SLOT_FLYING)
            continue;
        PyObject *id = PyLong_FromUnsignedLong(self->ring.slots[slot].id);

        if (id == NULL || PyList_Append(ids, id) != 0)
            Py_CLEAR(ids);
        Py_XDECREF(id);
    }
    pair_unlock(self);
    return ids;
}

PyObject *pair_take_stray(PyObject *object, PyObject *ignored)
{
    struct pair_object *self = (struct pair_object *)object;
    PyObject *stray;

    (void)ignored;
    pair_lock(self);
    stray = self->ring.untold ? PyBytes_FromStringAndSize((const char *)self->ring.stray, self->ring.layout.completion_size)
                              : Py_NewRef(Py_None);
    self->ring.untold = false;
    pair_unlock(self);
    return stray;
}

/* ---- attributes ---- */

#define COUNTER(name, expression)                                     \
    static PyObject *get_##name(PyObject *object, void *closure)      \
    {                                                                 \
        struct pair_object *self = (struct pair_object *)object;      \
                                                                      \
        (void)closure;                                                \
        pair_lock(self);                                              \
        unsigned long long value = (expression);                      \
        pair_unlock(self);                                            \
        return PyLong_FromUnsignedLongLong(value);                    \
    }

COUNTER(num_free, self->ring.num_free)
COUNTER(num_flying, self->ring.num_flying)
COUNTER(num_ready, ring_count(&self->ring.cookies))
COUNTER(num_finished, ring_count(&self->ring.owned))
COUNTER(num_failed, self->ring.num_failed)
COUNTER(strayed, self->ring.strayed)

static PyObject *get_running(PyObject *object, void *closure)
{
    (void)closure;
    return PyBool_FromLong(atomic_load(&((struct pair_object *)object)->running));
}

PyGetSetDef pair_properties[] = {
    {"num_free", get_num_free, NULL, "Number of commands that submit() takes before the rings are full.", NULL},
    {"num_flying", get_num_flying, NULL, "Number of commands that the device has.", NULL},
    {"num_ready", get_num_ready, NULL, "Number of commands that are done, for reap() and each().", NULL},
    {"num_finished", get_num_finished, NULL, "Number of commands that are done, for take().", NULL},
    {"num_failed", get_num_failed, NULL, "Number of commands so far whose outcome had a bit of error_mask.", NULL},
    {"strayed", get_strayed, NULL, "Not 0 when a completion was for a command that was not in flight, since reset().", NULL},
    {"running", get_running, NULL, "Whether commands are taken.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

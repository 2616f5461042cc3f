/* SPDX-License-Identifier: MIT */
/* Methods of RingPair: handing commands to the device. */
#include "ring_type.h"
#include "trace.h"

#include <stdlib.h>
#include <string.h>

/* ---- doorbells; the caller has the lock ---- */

bool pair_bell(struct pair_object *self, size_t offset, uint32_t value)
{
    struct mmio_object *mmio = (struct mmio_object *)self->bells;
    struct reader_slot *slot;

    if (!PyObject_TypeCheck(self->bells, core_mmio_type)) {
        PyObject *result = PyObject_CallMethod(self->bells, "write32", "nk", (Py_ssize_t)offset, (unsigned long)value);

        Py_XDECREF(result);
        return result != NULL;
    }
    if (!section_enter(mmio, &slot))
        return false;
    int64_t begin = trace_begin();

    io_write32(mmio->base + offset, value);
    trace_end(mmio, TRACE_WRITE, begin, offset, 4, value);
    return section_leave(mmio, slot);
}

/* Tell the device which completions were taken in. One that is stopped does not want to know. */
bool pair_acknowledge(struct pair_object *self)
{
    uint32_t head = atomic_load_explicit(&self->ring.place, memory_order_relaxed) & ~RING_PHASE;

    if (self->ring.unacknowledged == 0 || !atomic_load_explicit(&self->running, memory_order_relaxed))
        return true;
    if (!pair_bell(self, self->head_bell, head))
        return false;
    self->ring.unacknowledged = 0;
    return true;
}

/* ---- submitting ---- */

struct request {
    Py_buffer entries, cookies;
    PyObject *owners; /* a tuple, or NULL */
    PyObject *keep;
    size_t count;
    bool pick;
};

static void request_clear(struct request *request)
{
    PyBuffer_Release(&request->entries);
    PyBuffer_Release(&request->cookies);
    Py_CLEAR(request->owners);
}

static uint64_t cookie_at(const struct request *request, size_t index)
{
    uint64_t cookie;

    memcpy(&cookie, (const uint8_t *)request->cookies.buf + index * sizeof(cookie), sizeof(cookie));
    return cookie;
}

/* Every row must be there before the first is written. */
static bool check_rows(struct pair_object *self, const struct request *request)
{
    size_t rows = (size_t)request->entries.len / self->ring.layout.submission_size;

    if (!request->pick) {
        if (request->count <= rows)
            return true;
        PyErr_Format(core_errors.bounds, "%zu commands, and entries for %zu", request->count, rows);
        return false;
    }
    bool wrong = false;

    for (size_t i = 0; i < request->count; i++)
        wrong |= cookie_at(request, i) >= rows;
    for (size_t i = 0; wrong && i < request->count; i++) {
        if (cookie_at(request, i) < rows)
            continue;
        PyErr_Format(core_errors.bounds, "row %llu of a table that has %zu",
                     (unsigned long long)cookie_at(request, i), rows);
        return false;
    }
    return true;
}

static bool parse_request(struct pair_object *self, PyObject *const *args, Py_ssize_t nargs, struct request *request)
{
    uint64_t count;
    int pick;

    if (nargs != 5) {
        PyErr_Format(PyExc_TypeError, "submit() takes entries, cookies, a count, what to keep, and pick (%zd given)", nargs);
        return false;
    }
    pick = PyObject_IsTrue(args[4]);
    if (pick < 0 || PyObject_GetBuffer(args[0], &request->entries, PyBUF_SIMPLE) != 0 ||
        PyObject_GetBuffer(args[1], &request->cookies, PyBUF_SIMPLE) != 0)
        return false;
    request->count = (size_t)request->cookies.len / sizeof(uint64_t);
    if (args[2] != Py_None) {
        if (!core_unsigned(args[2], request->count, "the count", &count))
            return false;
        request->count = count;
    }
    request->keep = args[3] == Py_None ? NULL : args[3];
    request->pick = pick != 0;
    return check_rows(self, request);
}

static bool parse_owners(struct pair_object *self, PyObject *const *args, Py_ssize_t nargs, struct request *request)
{
    if (nargs != 2) {
        PyErr_Format(PyExc_TypeError, "submit_for() takes entries and owners (%zd given)", nargs);
        return false;
    }
    request->owners = PySequence_Tuple(args[1]); /* a list could change meanwhile */
    if (request->owners == NULL || PyObject_GetBuffer(args[0], &request->entries, PyBUF_SIMPLE) != 0)
        return false;
    request->count = (size_t)PyTuple_Size(request->owners);
    return check_rows(self, request);
}

static struct ring_batch *new_batch(struct ring *ring, const struct request *request)
{
    struct ring_batch *batch = malloc(sizeof(*batch));

    if (batch == NULL)
        return NULL;
    *batch = (struct ring_batch){Py_NewRef(request->keep), (uint32_t)request->count, ring->batches, NULL};
    if (ring->batches != NULL)
        ring->batches->previous = batch;
    ring->batches = batch;
    return batch;
}

static void drop_batch(struct ring *ring, struct ring_batch *batch)
{
    ring->batches = batch->next; /* it was the last that came */
    if (batch->next != NULL)
        batch->next->previous = NULL;
    batch->next = ring->ended;
    ring->ended = batch;
}

static void put_all(struct ring *ring, const struct request *request, struct ring_batch *batch)
{
    if (request->owners == NULL) {
        ring_put_cookies(ring, request->entries.buf, request->cookies.buf, request->count, request->pick, batch);
        return;
    }
    for (size_t i = 0; i < request->count; i++) {
        PyObject *owner = PyTuple_GetItem(request->owners, (Py_ssize_t)i);

        ring_put_owned(ring, (const uint8_t *)request->entries.buf + i * ring->layout.submission_size, Py_NewRef(owner));
    }
}

/* All or none; the caller has the lock and there is room. */
static bool hand_over(struct pair_object *self, const struct request *request)
{
    struct ring *ring = &self->ring;
    uint32_t tail = ring->tail;
    struct ring_batch *batch = NULL;

    /* Completions that the device may not write yet must not be needed for what is in flight. */
    if (ring->num_flying + request->count + ring->unacknowledged > ring->capacity && !pair_acknowledge(self))
        return false;
    if (request->keep != NULL && (batch = new_batch(ring, request)) == NULL) {
        PyErr_NoMemory();
        return false;
    }
    put_all(ring, request, batch);

    if (!pair_bell(self, self->tail_bell, ring->tail)) {
        /* The bell did not ring, so the device knows of none of them. */
        ring_take_back(ring, request->count, tail);
        for (size_t i = 0; request->owners != NULL && i < request->count; i++)
            Py_DECREF(PyTuple_GetItem(request->owners, (Py_ssize_t)i)); /* never the last one: the tuple has it */
        if (batch != NULL)
            drop_batch(ring, batch);
        return false;
    }
    return true;
}

/* The identifiers of what was just handed over, in order; the caller still has the lock. */
static PyObject *ids_of(struct ring *ring, size_t count)
{
    PyObject *ids = PyList_New((Py_ssize_t)count);

    for (size_t i = 0; ids != NULL && i < count; i++) {
        PyObject *id = PyLong_FromUnsignedLong(ring->slots[ring->free[ring->num_free + count - 1 - i]].id);

        if (id == NULL || PyList_SetItem(ids, (Py_ssize_t)i, id) != 0)
            Py_CLEAR(ids);
    }
    return ids;
}

/* True, or for owners the list of identifiers; False when they are not taken. */
static PyObject *submit(struct pair_object *self, const struct request *request)
{
    PyObject *result = NULL;
    bool taken;

    pair_lock(self);
    taken = atomic_load(&self->running) && !self->ring.strayed && request->count <= self->ring.num_free;
    if (!taken)
        result = Py_NewRef(Py_False);
    else if (request->count == 0 || hand_over(self, request))
        result = request->owners == NULL ? Py_NewRef(Py_True) : ids_of(&self->ring, request->count);
    pair_unlock(self);
    return result;
}

PyObject *pair_submit(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    struct pair_object *self = (struct pair_object *)object;
    struct request request = {0};
    PyObject *result = parse_request(self, args, nargs, &request) ? submit(self, &request) : NULL;

    request_clear(&request);
    return result;
}

PyObject *pair_submit_for(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    struct pair_object *self = (struct pair_object *)object;
    struct request request = {0};
    PyObject *result = parse_owners(self, args, nargs, &request) ? submit(self, &request) : NULL;

    request_clear(&request);
    return result;
}

/* SPDX-License-Identifier: MIT */
/* The ring of register accesses, and its face in Python: trace_start(), trace_drain(), trace_stop(). */
#include "trace.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* What Python unpacks: "=QQQQIIHHI". */
struct record {
    int64_t begin, end; /* CLOCK_MONOTONIC, ns */
    uint64_t offset, value;
    uint32_t thread, name; /* name: index in the list of names */
    uint16_t kind, width;
    uint32_t unused;
};

bool trace_on;

/* Guards everything below; never held while anything waits. */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct mmio_object *accessors; /* all there are */
static struct record *ring;
static size_t capacity, used, dropped;
static PyObject *names;   /* list of str, one for each accessor that was used */
static uint32_t session;  /* of the trace: an accessor's index is good for one only */

void trace_attach(struct mmio_object *self)
{
    pthread_mutex_lock(&mutex);
    self->next = accessors;
    self->link = &accessors;
    if (accessors != NULL)
        accessors->link = &self->next;
    accessors = self;
    pthread_mutex_unlock(&mutex);
}

void trace_detach(struct mmio_object *self)
{
    if (self->link == NULL)
        return;
    pthread_mutex_lock(&mutex);
    *self->link = self->next;
    if (self->next != NULL)
        self->next->link = self->link;
    self->link = NULL;
    pthread_mutex_unlock(&mutex);
}

/* Give an accessor its index in this trace; needs the GIL. False without an exception: the access was made, after all. */
static bool give_name(struct mmio_object *self)
{
    if (self->traced_in == session)
        return true;
    if (names == NULL || PyList_Append(names, self->name) != 0) {
        PyErr_Clear();
        return false;
    }
    self->trace_name = (uint32_t)PyList_Size(names) - 1;
    self->traced_in = session;
    return true;
}

void trace_record(struct mmio_object *self, enum trace_kind kind, int64_t begin, size_t offset, size_t width, uint64_t value)
{
    struct record *record = NULL;

    pthread_mutex_lock(&mutex);
    if (trace_on && give_name(self)) {
        if (used < capacity)
            record = &ring[used++];
        else
            dropped++;
    }
    if (record != NULL)
        *record = (struct record){begin,          lock_now(),       offset,          value, (uint32_t)lock_tid(),
                                  self->trace_name, (uint16_t)kind, (uint16_t)width, 0};
    pthread_mutex_unlock(&mutex);
}

static void switch_all(bool on)
{
    trace_on = on;
    for (struct mmio_object *each = accessors; each != NULL; each = each->next)
        mmio_set_fast(each);
}

static PyObject *start(PyObject *module, PyObject *argument)
{
    uint64_t count;

    (void)module;
    if (!core_unsigned(argument, (uint64_t)1 << 28, "the number of records", &count))
        return NULL;
    PyObject *list = PyList_New(0);
    struct record *memory = calloc(count == 0 ? 1 : count, sizeof(*memory));

    if (list == NULL || memory == NULL || trace_on) {
        Py_XDECREF(list);
        free(memory);
        if (trace_on)
            PyErr_SetString(core_errors.busy, "register accesses are traced already");
        return memory == NULL && !PyErr_Occurred() ? PyErr_NoMemory() : NULL;
    }
    pthread_mutex_lock(&mutex);
    names = list;
    ring = memory;
    capacity = count;
    used = dropped = 0;
    session++;
    switch_all(true);
    pthread_mutex_unlock(&mutex);
    Py_RETURN_NONE;
}

static PyObject *drain(PyObject *module, PyObject *ignored)
{
    (void)module, (void)ignored;
    /* Nothing is allocated under the mutex: that may collect garbage, and an accessor with it, which takes the mutex. */
    pthread_mutex_lock(&mutex);
    size_t count = used;
    unsigned long long lost = dropped;
    PyObject *list = names == NULL ? NULL : Py_NewRef(names);

    dropped = 0;
    pthread_mutex_unlock(&mutex);
    PyObject *known = list == NULL ? PyList_New(0) : PyList_GetSlice(list, 0, PyList_Size(list));
    PyObject *data = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(count * sizeof(*ring)));

    Py_XDECREF(list);
    if (known == NULL || data == NULL) {
        Py_XDECREF(known);
        Py_XDECREF(data);
        return NULL;
    }
    pthread_mutex_lock(&mutex);
    bool stopped = ring == NULL;

    if (!stopped) {
        memcpy(PyBytes_AsString(data), ring, count * sizeof(*ring));
        used -= count;
        memmove(ring, ring + count, used * sizeof(*ring));
    }
    pthread_mutex_unlock(&mutex);
    return Py_BuildValue("(NNK)", stopped ? (Py_DECREF(data), PyBytes_FromStringAndSize(NULL, 0)) : data, known, lost);
}

static PyObject *stop(PyObject *module, PyObject *ignored)
{
    (void)module, (void)ignored;
    pthread_mutex_lock(&mutex);
    switch_all(false);
    PyObject *list = names;
    struct record *memory = ring;

    names = NULL;
    ring = NULL;
    capacity = used = dropped = 0;
    pthread_mutex_unlock(&mutex);
    free(memory);
    Py_XDECREF(list);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"trace_start", start, METH_O,
     "trace_start(records, /)\n--\n\n"
     "Record every register access from here on, up to that many between two drains.\n\n"
     "Raises:\n    BusyError: they are recorded already."},
    {"trace_drain", drain, METH_NOARGS,
     "trace_drain()\n--\n\n"
     "Take the records out: bytes to unpack by \"=QQQQIIHHI\", the names that they refer to, and how many were lost.\n\n"
     "A record has begin and end (CLOCK_MONOTONIC, ns), offset, value, thread, index of the name, kind (0 read, 1\n"
     "write, 2 poll, 3 and 4 blocks, 5 program), width in bytes."},
    {"trace_stop", stop, METH_NOARGS, "trace_stop()\n--\n\nRecord no more; stopping twice does nothing."},
    {NULL, NULL, 0, NULL},
};

bool core_trace_setup(PyObject *module)
{
    return PyModule_AddFunctions(module, methods) == 0;
}

/* SPDX-License-Identifier: MIT */
/* The type RingPair. */
#include "ring_type.h"

#include <stdlib.h>
#include <string.h>

#define ENTRIES_MAX 65536u

/* ---- construction ---- */

struct field {
    const char *name;
    uint32_t *place;
    uint64_t max;
};

static bool parse_fields(PyObject *keywords, const struct field *fields, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        PyObject *value = PyDict_GetItemString(keywords, fields[i].name);
        uint64_t number;

        if (value == NULL) {
            PyErr_Format(PyExc_TypeError, "RingPair() needs %s", fields[i].name);
            return false;
        }
        if (!core_unsigned(value, fields[i].max, fields[i].name, &number))
            return false;
        *fields[i].place = (uint32_t)number;
    }
    return true;
}

static bool check_layout(const struct ring_layout *layout)
{
    uint32_t last = layout->completion_size - 2;

    if (layout->entries < 2 || layout->submission_size < 4 || layout->completion_size < 4) {
        PyErr_SetString(core_errors.bounds, "a ring has 2 entries at least, of 4 bytes at least");
        return false;
    }
    if (layout->id_at > layout->submission_size - 2 || layout->done_id_at > last || layout->phase_at > last ||
        (layout->match_at != RING_NONE && layout->match_at > last)) {
        PyErr_SetString(core_errors.bounds, "a field of the layout is outside of its entry");
        return false;
    }
    if (layout->phase_at % 2 != 0 || layout->completion_size % 2 != 0) {
        PyErr_SetString(core_errors.alignment, "the word with the phase is read at once: it must be 2-aligned");
        return false;
    }
    if (layout->phase_mask == 0 || (layout->phase_mask & (layout->phase_mask - 1)) != 0) {
        PyErr_SetString(core_errors.argument, "phase_mask is one bit");
        return false;
    }
    return true;
}

/* (offset, value) of a word that every completion must have; None for none. */
static bool parse_match(PyObject *match, struct ring_layout *layout)
{
    uint64_t at, value;

    layout->match_at = RING_NONE;
    if (match == NULL || match == Py_None)
        return true;
    if (!PyTuple_Check(match) || PyTuple_Size(match) != 2) {
        PyErr_Format(PyExc_TypeError, "match is a tuple (offset, value), not %R", match);
        return false;
    }
    if (!core_unsigned(PyTuple_GetItem(match, 0), RING_ENTRY_MAX, "match's offset", &at) ||
        !core_unsigned(PyTuple_GetItem(match, 1), UINT16_MAX, "match's value", &value))
        return false;
    layout->match_at = (uint32_t)at;
    layout->match = (uint32_t)value;
    return true;
}

static bool take_memory(Py_buffer *view, PyObject *memory, uint32_t entries, uint32_t size, const char *what)
{
    if (PyObject_GetBuffer(memory, view, PyBUF_WRITABLE) != 0)
        return false;
    if ((size_t)view->len < (size_t)entries * size) {
        PyErr_Format(core_errors.bounds, "%u %s of %u bytes need %zu bytes, there are %zd", entries, what, size,
                     (size_t)entries * size, view->len);
        return false;
    }
    if ((uintptr_t)view->buf % 2 != 0) {
        PyErr_Format(core_errors.alignment, "the memory of the %s is at an odd address", what);
        return false;
    }
    return true;
}

static bool check_bells(struct pair_object *self)
{
    struct mmio_object *mmio = (struct mmio_object *)self->bells;

    if (!PyObject_TypeCheck(self->bells, core_mmio_type))
        return true;
    return mmio_check(mmio, self->tail_bell, 4, 4) && mmio_check(mmio, self->head_bell, 4, 4) && mmio_writable(mmio);
}

static bool pair_setup(struct pair_object *self, PyObject *submissions, PyObject *completions, PyObject *layout_,
                       PyObject *match)
{
    struct ring_layout layout = {0};
    const struct field fields[] = {
        {"entries", &layout.entries, ENTRIES_MAX},
        {"submission_size", &layout.submission_size, RING_ENTRY_MAX},
        {"completion_size", &layout.completion_size, RING_ENTRY_MAX},
        {"id_at", &layout.id_at, RING_ENTRY_MAX},
        {"done_id_at", &layout.done_id_at, RING_ENTRY_MAX},
        {"phase_at", &layout.phase_at, RING_ENTRY_MAX},
        {"phase_mask", &layout.phase_mask, UINT16_MAX},
        {"error_mask", &layout.error_mask, UINT16_MAX},
    };

    if (!parse_fields(layout_, fields, sizeof(fields) / sizeof(fields[0])) || !parse_match(match, &layout) ||
        !check_layout(&layout) ||
        !take_memory(&self->submissions, submissions, layout.entries, layout.submission_size, "submissions") ||
        !take_memory(&self->completions, completions, layout.entries, layout.completion_size, "completions") ||
        !check_bells(self))
        return false;
    if (ring_init(&self->ring, &layout, self->submissions.buf, self->completions.buf) == 0)
        return true;
    PyErr_NoMemory();
    return false;
}

static PyObject *pair_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"submissions", "completions", "bells", "tail_bell", "head_bell", "layout", "match", "lazy", NULL};
    PyObject *submissions, *completions, *bells, *tail, *head, *layout, *match = NULL;
    uint64_t tail_bell, head_bell;
    int lazy = 0;

    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OOOOOO!|$Op:RingPair", names, &submissions, &completions, &bells, &tail,
                                     &head, &PyDict_Type, &layout, &match, &lazy) ||
        !core_unsigned(tail, SIZE_MAX, "tail_bell", &tail_bell) || !core_unsigned(head, SIZE_MAX, "head_bell", &head_bell))
        return NULL;
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    struct pair_object *self = (struct pair_object *)alloc(type, 0);

    if (self == NULL)
        return NULL;
    self->bells = Py_NewRef(bells);
    self->tail_bell = tail_bell;
    self->head_bell = head_bell;
    self->lazy = lazy != 0;
    if (!pair_setup(self, submissions, completions, layout, match))
        Py_CLEAR(self);
    return (PyObject *)self;
}

/* ---- the collector ---- */

static int pair_traverse(PyObject *object, visitproc visit, void *arg)
{
    struct pair_object *self = (struct pair_object *)object;

    for (uint32_t slot = 0; slot < self->ring.capacity; slot++)
        if (self->ring.slots[slot].owned)
            Py_VISIT((PyObject *)self->ring.slots[slot].holder);
    for (struct ring_batch *batch = self->ring.batches; batch != NULL; batch = batch->next)
        Py_VISIT((PyObject *)batch->keep);
    Py_VISIT(self->bells);
    Py_VISIT(Py_TYPE(object));
    return 0;
}

/* Commands in flight when nobody has the rings any more: nobody is left to be told either. */
static int pair_clear(PyObject *object)
{
    struct pair_object *self = (struct pair_object *)object;

    for (uint32_t slot = 0; slot < self->ring.capacity; slot++) {
        PyObject *owner = self->ring.slots[slot].owned ? self->ring.slots[slot].holder : NULL;

        self->ring.slots[slot].holder = NULL;
        Py_XDECREF(owner);
    }
    while (self->ring.batches != NULL) {
        struct ring_batch *batch = self->ring.batches;

        self->ring.batches = batch->next;
        Py_DECREF((PyObject *)batch->keep);
        free(batch);
    }
    Py_CLEAR(self->bells);
    return 0;
}

static void pair_dealloc(PyObject *object)
{
    struct pair_object *self = (struct pair_object *)object;
    PyTypeObject *type = Py_TYPE(object);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);

    PyObject_GC_UnTrack(object);
    pair_clear(object);
    ring_free(&self->ring);
    PyBuffer_Release(&self->submissions);
    PyBuffer_Release(&self->completions);
    release(object);
    Py_DECREF(type);
}

/* ---- the type ---- */

#define FAST(function) (PyCFunction)(void (*)(void))(function)

static PyMethodDef pair_methods[] = {
    {"submit", FAST(pair_submit), METH_FASTCALL,
     "submit(entries, cookies, count, keep, pick, /)\n--\n\n"
     "Hand commands to the device with one ring of the doorbell; True if that was done.\n\n"
     "All or none: False when there is no room for all of them, the rings are stopped, or a completion strayed.\n\n"
     "Args:\n    entries: any buffer of whole entries; the identifier is filled in here.\n"
     "    cookies: a buffer of 64-bit numbers, which reap() and each() give back.\n"
     "    count: how many of them; None for all.\n    keep: held until all outcomes are taken; None for nothing.\n"
     "    pick: the cookies are row numbers in entries; else the first entry belongs to the first cookie.\n\n"
     "Raises:\n    BoundsError: fewer entries than cookies, or a row that is not there.\n"
     "    ZappedError and its kin: the doorbell could not be rung; nothing was handed over."},
    {"submit_for", FAST(pair_submit_for), METH_FASTCALL,
     "submit_for(entries, owners, /)\n--\n\n"
     "Hand over commands that belong to objects, which take() gives back; the list of their identifiers, or False.\n\n"
     "Otherwise as submit()."},
    {"scan", pair_scan, METH_NOARGS,
     "scan()\n--\n\nTake in what the device has completed, for take(), reap() and each(), and tell it so.\n\n"
     "Raises:\n    ZappedError and its kin: it could not be told; the completions are taken in nevertheless."},
    {"take", pair_take, METH_NOARGS,
     "take()\n--\n\nGive the owners of commands that are done, each with the completion: a list of tuples."},
    {"reap", FAST(pair_reap), METH_FASTCALL,
     "reap(cookies, completions, least=0, seconds=0, /)\n--\n\n"
     "Scan; fill writable buffers with the cookies and the completions (or None) of commands that are done.\n\n"
     "Gives their number, at most what fits; the rest stays. Before that it looks without the GIL, for so many seconds at\n"
     "most, until the device has completed the least number, or all that are in flight. Raises as scan()."},
    {"each", FAST(pair_each), METH_FASTCALL,
     "each(callback, least=0, seconds=0, /)\n--\n\n"
     "Scan; call callback(cookie, word) for each command that is done, word being the one with the phase, without it.\n\n"
     "Gives their number. A callback may submit. When one raises, this ends; the rest stays for the next call.\n"
     "Looks before that as reap() does. Raises as scan()."},
    {"spin", FAST(pair_spin), METH_FASTCALL,
     "spin(seconds, cookies, /)\n--\n\n"
     "Look at the ring, without the GIL, until the device has completed something, a command with a cookie (an owner) is\n"
     "done, or the time is over; tell which: False for the time. Ends early when the rings are stopped."},
    {"start", pair_start, METH_NOARGS, "start()\n--\n\nTake commands, now that the device knows the rings."},
    {"stop", pair_stop, METH_NOARGS, "stop()\n--\n\nTake no commands, and ring no doorbell, any more."},
    {"reset", pair_reset, METH_NOARGS, "reset()\n--\n\nEmpty both rings, before the device is told of them (again)."},
    {"end_all", pair_end_all, METH_O,
     "end_all(completion, /)\n--\n\n"
     "End what is in flight with this outcome, once the device can't touch its memory any more; give the number."},
    {"flying", pair_flying, METH_NOARGS, "flying()\n--\n\nGive the identifiers of the commands that the device has."},
    {"take_stray", pair_take_stray, METH_NOARGS,
     "take_stray()\n--\n\n"
     "Give the completion of a command that was not in flight, as bytes, once; None when there was no further one."},
    {NULL, NULL, 0, NULL},
};

PyDoc_STRVAR(pair_doc,
             "RingPair(submissions, completions, bells, tail_bell, head_bell, layout, *, match=None, lazy=False)\n--\n\n"
             "A submission ring and a completion ring that a device shares, and the commands between them.\n\n"
             "Each command is accounted for exactly once: its cookie or its owner comes out when the device completes it,\n"
             "or when it is ended. No Python object is made for a command with a cookie.\n\n"
             "Args:\n"
             "    submissions, completions: writable memory of the rings, mapped for the device.\n"
             "    bells: the Mmio of the region with the doorbells, or an object with its write32().\n"
             "    tail_bell, head_bell: offsets of the doorbells for the submission tail and the completion head.\n"
             "    layout: a dictionary: entries (2 to 65536, of each ring; one less can be in flight), submission_size,\n"
             "        completion_size (bytes), id_at and done_id_at (offset of the 16-bit identifier in a submission and in\n"
             "        a completion), phase_at (offset of the 16-bit word with the phase), phase_mask (one bit),\n"
             "        error_mask (bits of that word that a failure sets).\n"
             "    match: (offset, value) of a 16-bit word that every completion must have.\n"
             "    lazy: tell the device of taken completions only when it could run out of room; not with interrupts.\n\n"
             "Lifetime:\n    Keeps the memory and the region alive. Made stopped: reset(), then start().\n\n"
             "Locking:\n    Any thread may call anything. A lock of its own is held over the doorbell, and not while\n"
             "    callbacks run or spin() looks.");

static PyType_Slot pair_slots[] = {
    {Py_tp_doc, (void *)pair_doc},
    {Py_tp_new, pair_new},
    {Py_tp_dealloc, pair_dealloc},
    {Py_tp_traverse, pair_traverse},
    {Py_tp_clear, pair_clear},
    {Py_tp_methods, pair_methods},
    {Py_tp_getset, pair_properties},
    {0, NULL},
};

static PyType_Spec pair_spec = {
    .name = "vfio_user._mmio.RingPair",
    .basicsize = sizeof(struct pair_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = pair_slots,
};

bool core_ring_setup(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &pair_spec, NULL);
    bool added = type != NULL && PyModule_AddType(module, (PyTypeObject *)type) == 0;

    Py_XDECREF(type);
    return added;
}

/* SPDX-License-Identifier: MIT */
/*
 * Ledger: which mappings an address space has, and what they keep alive. Drivers unmap them by the thousand, and the
 * kernel takes less than a microsecond for each: Python's share must be small against that, so the mappings are linked
 * by members of their own, as the kernel's are, and are looked at in C.
 *
 * Nothing here locks: the address space does. Only which ledger an entry is in is asked without a lock, by `in`.
 */
#include "ledger.h"

#include <stddef.h>
#include <structmember.h>

/* ---- in and out ---- */

/* The entry, if it is one and in this ledger; else NULL, without an exception. */
static struct entry_object *held(struct ledger_object *ledger, PyObject *object)
{
    struct entry_object *entry = (struct entry_object *)object;

    return PyObject_TypeCheck(object, core_entry_type) && ledger_of(entry) == ledger ? entry : NULL;
}

static void link_last(struct ledger_object *ledger, struct entry_object *entry)
{
    set_ledger(entry, ledger);
    entry->next = NULL;
    entry->previous = ledger->last;
    if (ledger->last != NULL)
        ledger->last->next = entry;
    else
        ledger->first = entry;
    ledger->last = entry;
    ledger->count++;
    ledger->num_bytes += entry->size;
}

/* The caller takes over the ledger's reference to the entry. */
static void unlink_entry(struct ledger_object *ledger, struct entry_object *entry)
{
    *(entry->previous != NULL ? &entry->previous->next : &ledger->first) = entry->next;
    *(entry->next != NULL ? &entry->next->previous : &ledger->last) = entry->previous;
    set_ledger(entry, NULL);
    entry->previous = entry->next = NULL;
    ledger->count--;
    if (entry->suspended)
        ledger->num_suspended--;
    else
        ledger->num_bytes -= entry->size;
    entry->suspended = entry->claimed = 0;
}

/* Unlink, and put what was owned into a list, at its place for it: two references for each entry. */
static void drop_into(PyObject *dropped, Py_ssize_t *at, struct ledger_object *ledger, struct entry_object *entry)
{
    PyObject *keepalive = entry->keepalive;

    unlink_entry(ledger, entry);
    entry->keepalive = NULL;
    PyList_SetItem(dropped, (*at)++, (PyObject *)entry);
    PyList_SetItem(dropped, (*at)++, keepalive);
}

static PyObject *ledger_add(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    struct ledger_object *ledger = (struct ledger_object *)self;
    struct entry_object *entry;

    if (nargs != 2 || !PyObject_TypeCheck(args[0], core_entry_type)) {
        PyErr_SetString(PyExc_TypeError, "add() takes an Entry and what it keeps alive");
        return NULL;
    }
    entry = (struct entry_object *)args[0];
    if (ledger_of(entry) != NULL || entry->size == 0) {
        PyErr_SetString(core_errors.argument, "this entry is in a ledger already, or has no range");
        return NULL;
    }
    Py_INCREF(args[0]);
    entry->keepalive = Py_NewRef(args[1]); /* NULL before: it is taken out with the entry */
    link_last(ledger, entry);
    Py_RETURN_NONE;
}

static PyObject *ledger_end(PyObject *self, PyObject *items)
{
    struct ledger_object *ledger = (struct ledger_object *)self;
    PyObject *sequence = PySequence_List(items), *dropped;
    Py_ssize_t count, at = 0;

    if (sequence == NULL)
        return NULL;
    count = PyList_Size(sequence);
    dropped = PyList_New(2 * count);
    for (Py_ssize_t i = 0; dropped != NULL && i < count; i++) {
        struct entry_object *entry = held(ledger, PyList_GetItem(sequence, i));

        if (entry != NULL) /* the same one twice is in no ledger the second time */
            drop_into(dropped, &at, ledger, entry);
    }
    Py_DECREF(sequence);
    if (dropped != NULL && PyList_SetSlice(dropped, at, 2 * count, NULL) < 0)
        Py_CLEAR(dropped);
    return dropped;
}

static PyObject *ledger_end_all(PyObject *self, PyObject *ignored)
{
    struct ledger_object *ledger = (struct ledger_object *)self;
    PyObject *dropped = PyList_New(2 * ledger->count);
    Py_ssize_t at = 0;

    (void)ignored;
    while (dropped != NULL && ledger->first != NULL)
        drop_into(dropped, &at, ledger, ledger->first);
    return dropped;
}

/* ---- states ---- */

static PyObject *ledger_claim(PyObject *self, PyObject *object)
{
    struct entry_object *entry = held((struct ledger_object *)self, object);

    if (entry == NULL || entry->claimed)
        Py_RETURN_FALSE;
    entry->claimed = 1;
    Py_RETURN_TRUE;
}

static PyObject *ledger_unclaim(PyObject *self, PyObject *object)
{
    struct entry_object *entry = held((struct ledger_object *)self, object);

    if (entry != NULL)
        entry->claimed = 0;
    Py_RETURN_NONE;
}

static PyObject *set_suspended(PyObject *self, PyObject *object, char suspended)
{
    struct ledger_object *ledger = (struct ledger_object *)self;
    struct entry_object *entry = held(ledger, object);

    if (entry != NULL && entry->suspended != suspended) {
        entry->suspended = suspended;
        ledger->num_suspended += suspended ? 1 : -1;
        ledger->num_bytes += suspended ? -entry->size : entry->size;
    }
    Py_RETURN_NONE;
}

static PyObject *ledger_suspend(PyObject *self, PyObject *object)
{
    return set_suspended(self, object, 1);
}

static PyObject *ledger_resume(PyObject *self, PyObject *object)
{
    return set_suspended(self, object, 0);
}

/* ---- ranges ---- */

static PyObject *ledger_runs(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    struct ledger_object *ledger = (struct ledger_object *)self;
    PyObject *sequence, *others = NULL, *runs = NULL, *result = NULL;
    struct extent *extents = NULL;
    Py_ssize_t count, different = 0;
    size_t found = 0;
    int merge;

    if (nargs != 2) {
        PyErr_SetString(PyExc_TypeError, "runs() takes a list and whether to merge");
        return NULL;
    }
    merge = PyObject_IsTrue(args[1]);
    if (merge < 0)
        return NULL;
    sequence = PySequence_List(args[0]);
    if (sequence == NULL)
        return NULL;
    count = PyList_Size(sequence);
    others = PyList_New(0);
    extents = PyMem_Malloc((size_t)(count ? count : 1) * sizeof(*extents));
    if (others == NULL || extents == NULL) {
        if (!PyErr_Occurred())
            PyErr_NoMemory();
        goto out;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *item = PyList_GetItem(sequence, i);
        struct entry_object *entry = held(ledger, item);

        if (entry != NULL && !entry->suspended)
            extents[found++] = (struct extent){entry->iova, entry->iova + (entry->size - 1)};
        else if (PyList_Append(others, item) < 0)
            goto out;
    }
    core_extents_order(extents, found);
    runs = core_extents_list(extents, core_extents_join(extents, found, merge, &different));
    if (runs != NULL)
        result = Py_BuildValue("OnO", runs, different, others);
out:
    PyMem_Free(extents);
    Py_XDECREF(runs);
    Py_XDECREF(others);
    Py_DECREF(sequence);
    return result;
}

static PyObject *ledger_entries(PyObject *self, PyObject *ignored)
{
    struct ledger_object *ledger = (struct ledger_object *)self;
    PyObject *list = PyList_New(ledger->count);
    Py_ssize_t at = 0;

    (void)ignored;
    for (struct entry_object *entry = ledger->first; list != NULL && entry != NULL; entry = entry->next)
        PyList_SetItem(list, at++, Py_NewRef((PyObject *)entry));
    return list;
}

static int ledger_contains(PyObject *self, PyObject *object)
{
    return held((struct ledger_object *)self, object) != NULL;
}

static Py_ssize_t ledger_length(PyObject *self)
{
    return ((struct ledger_object *)self)->count;
}

/* ---- the type ---- */

static int ledger_traverse(PyObject *self, visitproc visit, void *arg)
{
    for (struct entry_object *entry = ((struct ledger_object *)self)->first; entry != NULL; entry = entry->next)
        Py_VISIT((PyObject *)entry);
    Py_VISIT(Py_TYPE(self));
    return 0;
}

static int ledger_clear(PyObject *self)
{
    struct ledger_object *ledger = (struct ledger_object *)self;

    while (ledger->first != NULL) {
        struct entry_object *entry = ledger->first;

        unlink_entry(ledger, entry);
        Py_DECREF(entry);
    }
    return 0;
}

static void ledger_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);

    PyObject_GC_UnTrack(self);
    ledger_clear(self);
    release(self);
    Py_DECREF(type);
}

static PyMethodDef ledger_methods[] = {
    {"add", (PyCFunction)(void (*)(void))ledger_add, METH_FASTCALL,
     "add(entry, keepalive, /)\n--\n\nTake in an entry, and hold something as long as it is in.\n\n"
     "Raises:\n    ArgumentError: it is in a ledger already."},
    {"claim", ledger_claim, METH_O,
     "claim(entry, /)\n--\n\nTell whether the caller is the one to end an entry: it is in, and nobody has claimed it."},
    {"unclaim", ledger_unclaim, METH_O, "unclaim(entry, /)\n--\n\nSay that a claimed entry was not ended after all."},
    {"suspend", ledger_suspend, METH_O, "suspend(entry, /)\n--\n\nNote that devices do not reach it for a while."},
    {"resume", ledger_resume, METH_O, "resume(entry, /)\n--\n\nNote that devices reach it again."},
    {"runs", (PyCFunction)(void (*)(void))ledger_runs, METH_FASTCALL,
     "runs(items, merge, /)\n--\n\n"
     "Give the ranges that cover the entries among some objects, ordered, each its first IOVA and size.\n\n"
     "Ranges that abut are one, with merge. Further, how many different entries that are, and the other objects in\n"
     "their order: what is no entry of this ledger, and suspended ones."},
    {"end", ledger_end, METH_O,
     "end(items, /)\n--\n\nTake out the entries among some objects; give what was held, for the caller to let go of."},
    {"end_all", ledger_end_all, METH_NOARGS,
     "end_all()\n--\n\nTake out everything; give what was held, for the caller to let go of."},
    {"entries", ledger_entries, METH_NOARGS, "entries()\n--\n\nGive all entries, in the order of their addition."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef ledger_members[] = {
    {"num_bytes", T_ULONGLONG, offsetof(struct ledger_object, num_bytes), READONLY,
     "Bytes of the entries that are not suspended."},
    {"num_suspended", T_PYSSIZET, offsetof(struct ledger_object, num_suspended), READONLY, "Entries that are suspended."},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot ledger_slots[] = {
    {Py_tp_doc, "Ledger()\n--\n\nEntries, and what each of them keeps alive.\n\n"
                "Lifetime:\n    Holds its entries.\n"
                "Locking:\n    None: who changes it has a lock of its own. Asking whether something is in needs none."},
    {Py_tp_traverse, ledger_traverse},
    {Py_tp_clear, ledger_clear},
    {Py_tp_dealloc, ledger_dealloc},
    {Py_tp_methods, ledger_methods},
    {Py_tp_members, ledger_members},
    {Py_sq_contains, ledger_contains},
    {Py_sq_length, ledger_length},
    {0, NULL},
};

static PyType_Spec ledger_spec = {
    .name = "vfio_user._mmio.Ledger",
    .basicsize = sizeof(struct ledger_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = ledger_slots,
};

bool core_ledger_setup(PyObject *module)
{
    PyObject *type;
    bool added;

    if (!core_entry_setup(module))
        return false;
    type = PyType_FromSpec(&ledger_spec);
    added = type != NULL && PyModule_AddObjectRef(module, "Ledger", type) == 0;
    Py_XDECREF(type);
    return added;
}

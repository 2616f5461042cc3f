/* SPDX-License-Identifier: MIT */
/* Entries of a ledger: mappings derive from them. */
#include "ledger.h"

#include <stddef.h>
#include <structmember.h>

PyTypeObject *core_entry_type;

static int entry_init(PyObject *self, PyObject *args, PyObject *keywords)
{
    struct entry_object *entry = (struct entry_object *)self;
    PyObject *iova, *size;

    if (keywords != NULL && PyDict_Size(keywords) != 0) {
        PyErr_SetString(PyExc_TypeError, "Entry() takes no keyword arguments");
        return -1;
    }
    if (!PyArg_ParseTuple(args, "OO:Entry", &iova, &size))
        return -1;
    if (ledger_of(entry) != NULL) {
        PyErr_SetString(core_errors.argument, "this entry is in a ledger already");
        return -1;
    }
    if (!core_unsigned(iova, UINT64_MAX, "the IOVA", &entry->iova) ||
        !core_unsigned(size, UINT64_MAX, "the size", &entry->size))
        return -1;
    if (entry->size == 0 || entry->iova + (entry->size - 1) < entry->iova) {
        entry->size = 0;
        PyErr_SetString(core_errors.argument, "a range is not empty, and does not reach beyond 64 bits");
        return -1;
    }
    return 0;
}

static int entry_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(((struct entry_object *)self)->keepalive);
    Py_VISIT(Py_TYPE(self));
    return 0;
}

static int entry_clear(PyObject *self)
{
    Py_CLEAR(((struct entry_object *)self)->keepalive);
    return 0;
}

static void entry_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);

    PyObject_GC_UnTrack(self);
    entry_clear(self);
    release(self);
    Py_DECREF(type);
}

static PyMemberDef entry_members[] = {
    {"iova", T_ULONGLONG, offsetof(struct entry_object, iova), READONLY, "First address, as devices use it."},
    {"size", T_ULONGLONG, offsetof(struct entry_object, size), READONLY, "Bytes."},
    {"suspended", T_BOOL, offsetof(struct entry_object, suspended), READONLY,
     "Whether it is taken from the devices for a while."},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot entry_slots[] = {
    {Py_tp_doc, "Entry(iova, size)\n--\n\nBase of what a Ledger holds: a range of IOVAs.\n\n"
                "Lifetime:\n    A ledger keeps it, and what was given with it, alive.\n"
                "Locking:\n    Its ledger's."},
    {Py_tp_init, entry_init},
    {Py_tp_traverse, entry_traverse},
    {Py_tp_clear, entry_clear},
    {Py_tp_dealloc, entry_dealloc},
    {Py_tp_members, entry_members},
    {0, NULL},
};

static PyType_Spec entry_spec = {
    .name = "vfio_user._mmio.Entry",
    .basicsize = sizeof(struct entry_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = entry_slots,
};

bool core_entry_setup(PyObject *module)
{
    core_entry_type = (PyTypeObject *)PyType_FromSpec(&entry_spec);
    return core_entry_type != NULL && PyModule_AddObjectRef(module, "Entry", (PyObject *)core_entry_type) == 0;
}

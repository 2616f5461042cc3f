/* SPDX-License-Identifier: MIT */
/*
 * Cell: one register, as a base class: read() and write(value) without an offset to look up, parse and check.
 *
 * The usual case is a straight line, as in accessor.c, and bounds were checked against what is mapped when it was made.
 * Everything unusual (a trace, a closed gate, a wrong value, a region that is not mapped) is left to the region's own
 * verbs, which know all about it.
 */
#include "core.h"

struct cell_object {
    PyObject_HEAD
    PyObject *region;         /* what has the verbs: an Mmio, or anything else */
    struct mmio_object *mmio; /* the same when it is an Mmio, else NULL */
    PyObject *number;         /* the offset, for the region's verbs */
    size_t offset;
    unsigned width; /* bytes */
};

static const char *const read_verbs[] = {"read8", "read16", NULL, "read32", NULL, NULL, NULL, "read64"};
static const char *const write_verbs[] = {"write8", "write16", NULL, "write32", NULL, NULL, NULL, "write64"};

static int cell_init(PyObject *object, PyObject *args, PyObject *keywords)
{
    struct cell_object *self = (struct cell_object *)object;
    PyObject *region, *number, *bytes;
    uint64_t offset, width;

    if (keywords != NULL && PyDict_Size(keywords) != 0) {
        PyErr_SetString(PyExc_TypeError, "Cell() takes no keyword arguments");
        return -1;
    }
    if (!PyArg_ParseTuple(args, "OOO:Cell", &region, &number, &bytes) ||
        !core_unsigned(number, SIZE_MAX, "the offset", &offset) || !core_unsigned(bytes, 8, "the width", &width))
        return -1;
    if (width == 0 || read_verbs[width - 1] == NULL || offset % width != 0) {
        PyErr_Format(core_errors.argument, "there is no register of %llu bytes at offset %llu", (unsigned long long)width,
                     (unsigned long long)offset);
        return -1;
    }
    PyObject *old_region = self->region, *old_number = self->number;

    self->region = Py_NewRef(region);
    self->number = Py_NewRef(number);
    self->mmio = PyObject_TypeCheck(region, core_mmio_type) ? (struct mmio_object *)region : NULL;
    self->offset = offset;
    self->width = (unsigned)width;
    Py_XDECREF(old_region);
    Py_XDECREF(old_number);
    return 0;
}

static PyObject *cell_read(PyObject *object, PyObject *ignored)
{
    struct cell_object *self = (struct cell_object *)object;
    struct mmio_object *mmio = self->mmio;
    struct reader_slot *slot;

    (void)ignored;
    /* fast_end is a multiple of 8 and the offset of the width: what begins below it ends below it */
    if (likely(mmio != NULL) && likely(self->offset < mmio->fast_end) &&
        likely((slot = lock_enter_fast(&mmio->window->lock)) != NULL)) {
        uint64_t value = io_read(mmio->base + self->offset, self->width);

        return section_leave(mmio, slot) ? PyLong_FromUnsignedLong(value) : NULL;
    }
    if (self->region == NULL) {
        PyErr_SetString(core_errors.closed, "this register is of no region (yet)");
        return NULL;
    }
    return PyObject_CallMethod(self->region, read_verbs[self->width - 1], "O", self->number);
}

static PyObject *cell_write(PyObject *object, PyObject *argument)
{
    struct cell_object *self = (struct cell_object *)object;
    struct mmio_object *mmio = self->mmio;
    size_t value = PyLong_AsSize_t(argument);
    struct reader_slot *slot;

    if (likely(mmio != NULL) && likely(self->offset < mmio->fast_write_end) && likely(value != (size_t)-1) &&
        likely(value <= UINT64_MAX >> (64 - 8 * self->width)) &&
        likely((slot = lock_enter_fast(&mmio->window->lock)) != NULL)) {
        io_write(mmio->base + self->offset, self->width, value);
        if (!section_leave(mmio, slot))
            return NULL;
        Py_RETURN_NONE;
    }
    PyErr_Clear(); /* a conversion that failed is made again, for its error */
    if (self->region == NULL) {
        PyErr_SetString(core_errors.closed, "this register is of no region (yet)");
        return NULL;
    }
    return PyObject_CallMethod(self->region, write_verbs[self->width - 1], "OO", self->number, argument);
}

static void cell_dealloc(PyObject *object)
{
    struct cell_object *self = (struct cell_object *)object;
    PyTypeObject *type = Py_TYPE(object);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);

    Py_XDECREF(self->region);
    Py_XDECREF(self->number);
    release(object);
    Py_DECREF(type);
}

static PyMethodDef cell_methods[] = {
    {"read", cell_read, METH_NOARGS, "read($self, /)\n--\n\nRead it; raises as the region's accessor does."},
    {"write", cell_write, METH_O, "write($self, value, /)\n--\n\nWrite it; raises as the region's accessor does."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot cell_slots[] = {
    {Py_tp_doc, "Cell(region, offset, width)\n--\n\nBase of classes that stand for one register of width bytes.\n\n"
                "Lifetime:\n    Keeps the region alive.\n\n"
                "Locking:\n    As the region's accessors."},
    {Py_tp_init, cell_init},
    {Py_tp_dealloc, cell_dealloc},
    {Py_tp_methods, cell_methods},
    {0, NULL},
};

static PyType_Spec cell_spec = {
    .name = "vfio_user._mmio.Cell",
    .basicsize = sizeof(struct cell_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = cell_slots,
};

bool core_cell_setup(PyObject *module)
{
    PyObject *type = PyType_FromSpec(&cell_spec);
    bool added = type != NULL && PyModule_AddObjectRef(module, "Cell", type) == 0;

    Py_XDECREF(type);
    return added;
}

/* SPDX-License-Identifier: MIT */
/* `with mmio.access() as mmio:` - one read section over several accesses. */
#include "core.h"

static PyTypeObject *access_type;

struct access_object {
    PyObject_HEAD
    struct mmio_object *mmio;
    bool wait;
    double seconds;
};

PyObject *mmio_access(PyObject *object, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"wait", NULL};
    PyObject *wait = Py_None;
    int64_t deadline;

    if (!PyArg_ParseTupleAndKeywords(args, keywords, "|$O:access", names, &wait) ||
        (wait != Py_None && !core_deadline(wait, &deadline)))
        return NULL;
    allocfunc alloc = (allocfunc)PyType_GetSlot(access_type, Py_tp_alloc);
    struct access_object *self = (struct access_object *)alloc(access_type, 0);

    if (self == NULL)
        return NULL;
    Py_INCREF(object);
    self->mmio = (struct mmio_object *)object;
    self->wait = wait != Py_None;
    self->seconds = self->wait ? PyFloat_AsDouble(wait) : 0;
    return (PyObject *)self;
}

static PyObject *access_enter(PyObject *object, PyObject *ignored)
{
    struct access_object *self = (struct access_object *)object;

    (void)ignored;
    if (!core_acquire(self->mmio->owner, self->wait, self->wait ? lock_now() + (int64_t)(self->seconds * 1e9) : 0))
        return NULL;
    Py_INCREF((PyObject *)self->mmio);
    return (PyObject *)self->mmio;
}

static PyObject *access_exit(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    struct access_object *self = (struct access_object *)object;

    (void)args, (void)nargs;
    return core_release(self->mmio->owner) ? Py_NewRef(Py_None) : NULL;
}

static void access_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);

    Py_XDECREF((PyObject *)((struct access_object *)object)->mmio);
    release(object);
    Py_DECREF(type);
}

static PyMethodDef access_methods[] = {
    {"__enter__", access_enter, METH_NOARGS, "__enter__($self, /)\n--\n\nEnter the section; give the accessor."},
    {"__exit__", (PyCFunction)(void (*)(void))access_exit, METH_FASTCALL,
     "__exit__($self, /, *exception)\n--\n\nLeave the section."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot access_slots[] = {
    {Py_tp_doc, "A read section over several accesses; made by Mmio.access().\n\n"
                "Lifetime:\n    Keeps the accessor alive. May be entered again after it was left.\n\n"
                "Locking:\n    Holds the memory lock for reading, for the thread that entered."},
    {Py_tp_dealloc, access_dealloc},
    {Py_tp_methods, access_methods},
    {0, NULL},
};

static PyType_Spec access_spec = {
    .name = "vfio_user._mmio.Access",
    .basicsize = sizeof(struct access_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = access_slots,
};

bool core_access_setup(PyObject *module)
{
    access_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &access_spec, NULL);
    return access_type != NULL && PyModule_AddType(module, access_type) == 0;
}

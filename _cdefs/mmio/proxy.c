/* SPDX-License-Identifier: MIT */
/*
 * BufferProxy: a base class whose instances hand out the buffer of another object. Python classes can't implement the
 * buffer protocol before 3.12; with this base they can be passed to memoryview(), bytes() and numpy.frombuffer().
 */
#include "core.h"

#include <stddef.h>

/*
 * The proxy is the exporter itself and holds no buffer of its own. Before 3.13 the garbage collector crashes on a
 * memoryview whose buffer another exporter holds, when both are in a cycle (and an exception's traceback makes one of
 * any local variable); so it refers to what the memoryview stands for instead.
 */
struct proxy_object {
    PyObject_HEAD
    PyObject *target; /* keeps the memory alive */
    void *start;
    Py_ssize_t size;
    int readonly;
};

static int proxy_init(PyObject *self, PyObject *args, PyObject *keywords)
{
    struct proxy_object *proxy = (struct proxy_object *)self;
    PyObject *target, *owner, *old = proxy->target;
    Py_buffer buffer;

    if (keywords != NULL && PyDict_Size(keywords) != 0) {
        PyErr_SetString(PyExc_TypeError, "BufferProxy() takes no keyword arguments");
        return -1;
    }
    if (!PyArg_ParseTuple(args, "O:BufferProxy", &target))
        return -1;
    if (!PyObject_CheckBuffer(target)) {
        PyErr_SetString(core_errors.argument, "BufferProxy() takes an object with a buffer");
        return -1;
    }
    if (PyObject_GetBuffer(target, &buffer, PyBUF_SIMPLE) < 0)
        return -1;
    proxy->start = buffer.buf;
    proxy->size = buffer.len;
    proxy->readonly = buffer.readonly;
    PyBuffer_Release(&buffer);
    owner = PyObject_GetAttrString(target, "obj"); /* a memoryview's exporter */
    if (owner == NULL) {
        PyErr_Clear();
        owner = Py_NewRef(target);
    }
    proxy->target = owner;
    Py_XDECREF(old);
    return 0;
}

static int proxy_getbuffer(PyObject *self, Py_buffer *view, int flags)
{
    struct proxy_object *proxy = (struct proxy_object *)self;

    if (proxy->target == NULL) {
        view->obj = NULL;
        PyErr_SetString(core_errors.closed, "this object has no buffer (yet)");
        return -1;
    }
    return PyBuffer_FillInfo(view, self, proxy->start, proxy->size, proxy->readonly, flags);
}

static int proxy_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(((struct proxy_object *)self)->target);
    Py_VISIT(Py_TYPE(self));
    return 0;
}

static int proxy_clear(PyObject *self)
{
    Py_CLEAR(((struct proxy_object *)self)->target);
    return 0;
}

static void proxy_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);

    PyObject_GC_UnTrack(self);
    proxy_clear(self);
    release(self);
    Py_DECREF(type);
}

static PyType_Slot proxy_slots[] = {
    {Py_tp_doc, "BufferProxy(buffer)\n--\n\nBase of classes that hand out the buffer of another object.\n\n"
                "Lifetime:\n    Keeps the other object alive; views keep it alive by themselves.\n"
                "Locking:\n    None."},
    {Py_tp_init, proxy_init},
    {Py_tp_traverse, proxy_traverse},
    {Py_tp_clear, proxy_clear},
    {Py_tp_dealloc, proxy_dealloc},
    {Py_bf_getbuffer, proxy_getbuffer},
    {0, NULL},
};

static PyType_Spec proxy_spec = {
    .name = "vfio_user._mmio.BufferProxy",
    .basicsize = sizeof(struct proxy_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = proxy_slots,
};

bool core_proxy_setup(PyObject *module)
{
    PyObject *type = PyType_FromSpec(&proxy_spec);
    bool added = type != NULL && PyModule_AddObjectRef(module, "BufferProxy", type) == 0;

    Py_XDECREF(type);
    return added;
}

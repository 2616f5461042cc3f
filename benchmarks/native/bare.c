/* SPDX-License-Identifier: MIT */
/*
 * Peer of the accessors: a type whose read32() and write32() do the same conversions and the same access, and nothing
 * else: no bounds, no lock, no look whether the memory is there. The difference is what the guard costs.
 */
#define Py_LIMITED_API 0x030b0000
#include <Python.h>

#include <stdint.h>

struct bare {
    PyObject_HEAD
    uint8_t *base;
};

static PyObject *bare_read32(PyObject *self, PyObject *offset)
{
    size_t at = PyLong_AsSize_t(offset);

    if (at == (size_t)-1 && PyErr_Occurred())
        return NULL;
    return PyLong_FromUnsignedLong(*(volatile uint32_t *)(((struct bare *)self)->base + at));
}

static PyObject *bare_write32(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 2) {
        PyErr_SetString(PyExc_TypeError, "write32() takes an offset and a value");
        return NULL;
    }
    size_t at = PyLong_AsSize_t(args[0]);
    unsigned long value = PyLong_AsUnsignedLong(args[1]);

    if ((at == (size_t)-1 || value == (unsigned long)-1) && PyErr_Occurred())
        return NULL;
    *(volatile uint32_t *)(((struct bare *)self)->base + at) = (uint32_t)value;
    Py_RETURN_NONE;
}

static PyObject *bare_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    Py_ssize_t address;

    (void)keywords;
    if (!PyArg_ParseTuple(args, "n", &address))
        return NULL;
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    struct bare *self = (struct bare *)alloc(type, 0);

    if (self != NULL)
        self->base = (uint8_t *)address;
    return (PyObject *)self;
}

static PyMethodDef methods[] = {
    {"read32", bare_read32, METH_O, NULL},
    {"write32", (PyCFunction)(void (*)(void))bare_write32, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {{Py_tp_new, bare_new}, {Py_tp_methods, methods}, {0, NULL}};

static PyType_Spec spec = {
    .name = "bare.Bare",
    .basicsize = sizeof(struct bare),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = slots,
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "bare"};

PyMODINIT_FUNC PyInit_bare(void)
{
    PyObject *module = PyModule_Create(&definition);
    PyObject *type = module == NULL ? NULL : PyType_FromSpec(&spec);

    if (type == NULL || PyModule_AddObjectRef(module, "Bare", type) != 0)
        Py_CLEAR(module);
    Py_XDECREF(type);
    return module;
}

/* SPDX-License-Identifier: MIT */
/*
 * A device that answers at once, for the cost of rings alone: it takes what was submitted up to the doorbell and writes a
 * completion for each. And the peer: the plain loop in C that a driver would be, over the same rings.
 */
#define Py_LIMITED_API 0x030b0000
#include <Python.h>

#include <stdint.h>
#include <string.h>
#include <time.h>

struct completion {
    uint32_t result, high;
    uint16_t head, queue, id, status;
};

typedef uint64_t whole __attribute__((vector_size(16), may_alias));

struct stub {
    PyObject_HEAD
    uint8_t *submissions, *completions;
    volatile uint32_t *bell;
    uint32_t entries, taken, place;
    uint16_t phase;
};

static void serve(struct stub *self)
{
    uint32_t tail = *self->bell;

    while (self->taken != tail) {
        uint16_t id;

        memcpy(&id, self->submissions + 64 * self->taken + 2, sizeof(id));
        /* written at once, as a device does: what is written in parts is slow to read as one, which would be counted */
        *((volatile whole *)self->completions + self->place) =
            (whole){0, (uint64_t)self->phase << 48 | (uint64_t)id << 32 | UINT64_C(1) << 16};
        self->taken = self->taken + 1 == self->entries ? 0 : self->taken + 1;
        if (++self->place == self->entries) {
            self->place = 0;
            self->phase ^= 1;
        }
    }
}

static PyObject *stub_serve(PyObject *self, PyObject *ignored)
{
    (void)ignored;
    serve((struct stub *)self);
    Py_RETURN_NONE;
}

/* Nanoseconds of processor time for each command of so many turns of a plain loop. */
static PyObject *stub_plain(PyObject *object, PyObject *args)
{
    struct stub *self = (struct stub *)object;
    uint32_t tail = self->taken, head = self->place;
    uint16_t phase = self->phase, id = 0;
    unsigned long turns, depth;
    struct timespec begin, end;
    uint8_t entry[64] = {2};

    if (!PyArg_ParseTuple(args, "kk", &turns, &depth))
        return NULL;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &begin);
    for (unsigned long turn = 0; turn < turns; turn++) {
        for (unsigned long i = 0; i < depth; i++) {
            uint8_t *at = self->submissions + 64 * tail;

            memcpy(at, entry, sizeof(entry));
            memcpy(at + 2, &id, sizeof(id));
            id++;
            tail = tail + 1 == self->entries ? 0 : tail + 1;
        }
        *self->bell = tail;
        serve(self);
        for (;;) {
            const volatile struct completion *done = (struct completion *)self->completions + head;

            if ((done->status & 1) != phase)
                break;
            if (++head == self->entries) {
                head = 0;
                phase ^= 1;
            }
        }
        self->bell[1] = head;
    }
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &end);
    return PyFloat_FromDouble(((double)(end.tv_sec - begin.tv_sec) * 1e9 + (double)(end.tv_nsec - begin.tv_nsec)) /
                              (double)(turns * depth));
}

static PyObject *stub_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    Py_ssize_t submissions, completions, bell;
    unsigned int entries;

    (void)keywords;
    if (!PyArg_ParseTuple(args, "nnnI", &submissions, &completions, &bell, &entries))
        return NULL;
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    struct stub *self = (struct stub *)alloc(type, 0);

    if (self != NULL) {
        self->submissions = (uint8_t *)submissions;
        self->completions = (uint8_t *)completions;
        self->bell = (volatile uint32_t *)bell;
        self->entries = entries;
        self->phase = 1;
    }
    return (PyObject *)self;
}

static PyMethodDef methods[] = {
    {"serve", stub_serve, METH_NOARGS, NULL},
    {"plain", stub_plain, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {{Py_tp_new, stub_new}, {Py_tp_methods, methods}, {0, NULL}};

static PyType_Spec spec = {
    .name = "stub.Stub",
    .basicsize = sizeof(struct stub),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = slots,
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "stub"};

PyMODINIT_FUNC PyInit_stub(void)
{
    PyObject *module = PyModule_Create(&definition);
    PyObject *type = module == NULL ? NULL : PyType_FromSpec(&spec);

    if (type == NULL || PyModule_AddObjectRef(module, "Stub", type) != 0)
        Py_CLEAR(module);
    Py_XDECREF(type);
    return module;
}

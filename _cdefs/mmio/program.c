/* SPDX-License-Identifier: MIT */
/*
 * Register programs: a list of writes, reads and polls, checked and packed once, run by one C call in one
 * read section. Neighbours of one kind at a constant distance become one run, so that a table of
 * registers costs what a loop over it costs.
 */
#include "program.h"

#include <stdlib.h>
#include <string.h>

PyTypeObject *core_program_type;

/* All polls of a program together: a reset has to wait for as long. */
#define PROGRAM_POLL_MAX_US 1000000

/* ---- packing ---- */

static const struct {
    const char *name;
    uint8_t kind, width;
    Py_ssize_t size; /* of the tuple */
} verbs[] = {
    {"read8", READS, 1, 2},   {"read16", READS, 2, 2},   {"read32", READS, 4, 2},   {"read64", READS, 8, 2},
    {"write8", WRITES, 1, 3}, {"write16", WRITES, 2, 3}, {"write32", WRITES, 4, 3}, {"write64", WRITES, 8, 3},
    {"poll8", POLL, 1, 5},    {"poll16", POLL, 2, 5},    {"poll32", POLL, 4, 5},    {"poll64", POLL, 8, 5},
};

static const char usage[] = "(\"read32\", offset), (\"write32\", offset, value) or "
                            "(\"poll32\", offset, mask, equals, timeout_us), with widths 8, 16, 32, 64";

static int find_verb(PyObject *name)
{
    for (size_t i = 0; i < sizeof(verbs) / sizeof(verbs[0]); i++)
        if (PyUnicode_CompareWithASCIIString(name, verbs[i].name) == 0)
            return (int)i;
    return -1;
}

/* The operands of one step, after name and offset. */
static bool parse_operands(PyObject *step, int verb, uint64_t *operands, uint64_t *poll_us)
{
    uint64_t max = UINT64_MAX >> (64 - 8 * verbs[verb].width);

    if (verbs[verb].kind == WRITES)
        return core_unsigned(PyTuple_GetItem(step, 2), max, "the value", &operands[0]);
    if (verbs[verb].kind != POLL)
        return true;
    if (!core_unsigned(PyTuple_GetItem(step, 2), max, "mask", &operands[0]) ||
        !core_unsigned(PyTuple_GetItem(step, 3), max, "equals", &operands[1]) ||
        !core_unsigned(PyTuple_GetItem(step, 4), PROGRAM_POLL_MAX_US, "timeout_us", &operands[2]))
        return false;
    *poll_us += operands[2];
    if (*poll_us > PROGRAM_POLL_MAX_US) {
        PyErr_SetString(core_errors.argument, "the polls of one program may take 1000000 us together: it holds the memory "
                                              "lock all the time; use poll() for longer waits");
        return false;
    }
    if ((operands[1] & ~operands[0]) != 0) {
        PyErr_SetString(core_errors.argument, "equals has bits outside of mask: the poll could never end");
        return false;
    }
    return true;
}

/* Does this access continue the last run? The second access of a run sets its stride. */
static bool continues(const struct run *run, uint8_t kind, uint8_t width, uint64_t offset)
{
    int64_t stride;

    if (run == NULL || kind == POLL || run->kind != kind || run->width != width)
        return false;
    stride = (int64_t)(offset - (run->offset + (uint64_t)run->stride * (run->count - 1)));
    return run->count == 1 || stride == run->stride;
}

static void add_access(struct program_object *self, int verb, uint64_t offset, const uint64_t *operands)
{
    uint8_t kind = verbs[verb].kind, width = verbs[verb].width;
    struct run *last = self->num_runs == 0 ? NULL : &self->runs[self->num_runs - 1];
    size_t num_operands = kind == WRITES ? 1 : kind == POLL ? 3 : 0;

    if (continues(last, kind, width, offset)) {
        if (last->count == 1)
            last->stride = (int64_t)(offset - last->offset);
        last->count++;
    } else {
        self->runs[self->num_runs++] = (struct run){offset, 0, 1, self->num_operands, self->num_steps, kind, width};
    }
    memcpy(self->operands + self->num_operands, operands, num_operands * sizeof(*operands));
    self->num_operands += num_operands;
    self->num_results += kind != WRITES;
    self->writes |= kind == WRITES;
    self->polls |= kind == POLL;
    self->num_steps++;
}

static bool add_step(struct program_object *self, PyObject *step, uint64_t *poll_us)
{
    uint64_t operands[3] = {0}, offset;
    int verb = -1;

    if (PyTuple_Check(step) && PyTuple_Size(step) >= 2 && PyUnicode_Check(PyTuple_GetItem(step, 0)))
        verb = find_verb(PyTuple_GetItem(step, 0));
    if (verb < 0 || PyTuple_Size(step) != verbs[verb].size) {
        PyErr_Format(core_errors.argument, "step %zu is not %s: %R", self->num_steps, usage, step);
        return false;
    }
    if (!core_unsigned(PyTuple_GetItem(step, 1), INT64_MAX, "offset", &offset) ||
        !parse_operands(step, verb, operands, poll_us))
        return false;
    if (offset % verbs[verb].width != 0) {
        PyErr_Format(core_errors.alignment, "step %zu: offset %llu is not a multiple of the access width, %d bytes",
                     self->num_steps, (unsigned long long)offset, verbs[verb].width);
        return false;
    }
    add_access(self, verb, offset, operands);
    return true;
}

static PyObject *program_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"steps", NULL};
    PyObject *sequence;
    uint64_t poll_us = 0;

    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O:Program", names, &sequence))
        return NULL;
    PyObject *steps = PySequence_Tuple(sequence);
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    struct program_object *self = steps == NULL ? NULL : (struct program_object *)alloc(type, 0);
    bool good = self != NULL;

    if (good) {
        size_t count = (size_t)PyTuple_Size(steps) + 1;

        self->runs = calloc(count, sizeof(*self->runs));
        self->operands = calloc(count, 3 * sizeof(*self->operands));
        good = self->runs != NULL && self->operands != NULL;
        if (!good)
            PyErr_NoMemory();
    }
    for (Py_ssize_t i = 0; good && i < PyTuple_Size(steps); i++)
        good = add_step(self, PyTuple_GetItem(steps, i), &poll_us);
    Py_XDECREF(steps);
    if (!good)
        Py_CLEAR(self);
    return (PyObject *)self;
}

static void program_dealloc(PyObject *object)
{
    struct program_object *self = (struct program_object *)object;
    PyTypeObject *type = Py_TYPE(object);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);

    free(self->runs);
    free(self->operands);
    release(object);
    Py_DECREF(type);
}

/* ---- the type ---- */

static Py_ssize_t program_length(PyObject *self)
{
    return (Py_ssize_t)((struct program_object *)self)->num_steps;
}

static PyObject *get_num_results(PyObject *self, void *closure)
{
    (void)closure;
    return PyLong_FromSize_t(((struct program_object *)self)->num_results);
}

static PyObject *program_repr(PyObject *object)
{
    struct program_object *self = (struct program_object *)object;

    return PyUnicode_FromFormat("<Program of %zu steps, %zu results>", self->num_steps, self->num_results);
}

static PyGetSetDef program_properties[] = {
    {"num_results", get_num_results, NULL, "How many values a run returns: one for each read and poll.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(program_doc,
             "Program(steps)\n--\n\n"
             "Pack a register program, to be run by Mmio.run() as often as wanted, on any region.\n\n"
             "Args:\n"
             "    steps: tuples (\"read32\", offset), (\"write32\", offset, value),\n"
             "        (\"poll32\", offset, mask, equals, timeout_us); widths 8, 16, 32 and 64. A poll yields the value\n"
             "        for which value & mask == equals. All polls together may take 1000000 us, for the memory lock is\n"
             "        held all the time.\n\n"
             "Raises:\n"
             "    ArgumentError, AlignmentError: a step is wrong; the message has its index.\n\n"
             "Lifetime:\n    A value: it never changes and belongs to no device. len() is the number of steps.\n\n"
             "Locking:\n    Running it is one read section; the GIL is released when it polls or has more than 64 steps.");

static PyType_Slot program_slots[] = {
    {Py_tp_doc, (void *)program_doc},        {Py_tp_new, program_new},   {Py_tp_dealloc, program_dealloc},
    {Py_tp_getset, program_properties},      {Py_tp_repr, program_repr}, {Py_sq_length, program_length},
    {0, NULL},
};

static PyType_Spec program_spec = {
    .name = "vfio_user._mmio.Program",
    .basicsize = sizeof(struct program_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = program_slots,
};

bool core_program_setup(PyObject *module)
{
    core_program_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &program_spec, NULL);
    return core_program_type != NULL && PyModule_AddType(module, core_program_type) == 0;
}

/* SPDX-License-Identifier: MIT */
/*
 * Register programs: a list of writes, reads and polls, checked and packed once, run by one C call in one
 * read section. Neighbours of one kind at a constant distance become one run, so that a table of
 * registers costs what a loop over it costs.
 */
#include "core.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

PyTypeObject *core_program_type;

/* All polls of a program together: a reset has to wait for as long. */
#define PROGRAM_POLL_MAX_US 1000000

enum kind { READS, WRITES, POLL };

struct run {
    uint64_t offset;
    int64_t stride; /* from one access to the next, bytes */
    size_t count;
    size_t operand; /* index of the first value (WRITES), or of mask, equals, timeout in us (POLL) */
    size_t step;    /* index of the first step, as the caller counts */
    uint8_t kind, width;
};

struct program_object {
    PyObject_HEAD
    struct run *runs;
    uint64_t *operands;
    size_t num_runs, num_operands, num_steps, num_results;
    bool writes, polls;
};

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

/* ---- running ---- */

/* All accesses of a run lie between its first and its last one; a hole between them is looked for. */
static bool check_run(struct mmio_object *self, const struct run *run)
{
    uint64_t last = run->offset + (uint64_t)run->stride * (run->count - 1);
    uint64_t low = run->stride < 0 ? last : run->offset, high = run->stride < 0 ? run->offset : last;

    if (high - self->first.start < self->first.size && low >= self->first.start)
        return mmio_check(self, high, run->width, run->width);
    for (size_t i = 0; i < run->count; i++)
        if (!mmio_check(self, run->offset + (uint64_t)run->stride * i, run->width, run->width))
            return false;
    return true;
}

static bool check_program(struct mmio_object *self, const struct program_object *program)
{
    if (program->writes && !mmio_writable(self))
        return false;
    for (size_t i = 0; i < program->num_runs; i++)
        if (!check_run(self, &program->runs[i]))
            return false;
    return true;
}

#define RUN_LOOPS(bits)                                                                             \
    static void run_reads##bits(const uint8_t *at, const struct run *run, uint64_t *results)        \
    {                                                                                               \
        const size_t count = run->count;                                                            \
        const int64_t stride = run->stride;                                                         \
                                                                                                    \
        _Pragma("GCC unroll 8") for (size_t i = 0; i < count; i++, at += stride)                    \
            results[i] = io_read##bits(at);                                                         \
    }                                                                                               \
    static void run_writes##bits(uint8_t *at, const struct run *run, const uint64_t *values)        \
    {                                                                                               \
        const size_t count = run->count;                                                            \
        const int64_t stride = run->stride;                                                         \
                                                                                                    \
        _Pragma("GCC unroll 8") for (size_t i = 0; i < count; i++, at += stride)                    \
            io_write##bits(at, (uint##bits##_t)values[i]);                                          \
    }

RUN_LOOPS(8)
RUN_LOOPS(16)
RUN_LOOPS(32)
RUN_LOOPS(64)

static void run_reads(const uint8_t *at, const struct run *run, uint64_t *results)
{
    switch (run->width) {
    case 1:
        run_reads8(at, run, results);
        break;
    case 2:
        run_reads16(at, run, results);
        break;
    case 4:
        run_reads32(at, run, results);
        break;
    default:
        run_reads64(at, run, results);
    }
}

static void run_writes(uint8_t *at, const struct run *run, const uint64_t *values)
{
    switch (run->width) {
    case 1:
        run_writes8(at, run, values);
        break;
    case 2:
        run_writes16(at, run, values);
        break;
    case 4:
        run_writes32(at, run, values);
        break;
    default:
        run_writes64(at, run, values);
    }
}

/* Look until it matches, the time is over, or the memory is gone (which the end of the section tells). */
static bool run_poll(struct mmio_object *self, const struct run *run, const uint64_t *operands, uint64_t *result)
{
    int64_t deadline = lock_now() + (int64_t)operands[2] * 1000;

    for (;;) {
        int64_t now = lock_now(); /* before the look: one look is always made after the deadline */

        *result = io_read(self->base + run->offset, run->width);
        if ((*result & operands[0]) == operands[1])
            return true;
        if (now >= deadline || (atomic_load(&self->window->lock.gate) & GATE_MEMORY) != 0)
            return false;
        lock_relax();
    }
}

struct outcome {
    size_t num_results, step; /* of the poll that expired */
    bool expired;
};

static void execute(struct mmio_object *self, const struct program_object *program, uint64_t *results,
                    struct outcome *outcome)
{
    for (size_t i = 0; i < program->num_runs; i++) {
        const struct run *run = &program->runs[i];
        const uint64_t *operands = program->operands + run->operand;
        uint8_t *at = self->base + run->offset;

        if (run->kind == WRITES) {
            run_writes(at, run, operands);
            continue;
        }
        if (run->kind == READS) {
            run_reads(at, run, results + outcome->num_results);
        } else if (!run_poll(self, run, operands, results + outcome->num_results)) {
            outcome->expired = true;
            outcome->step = run->step;
            return;
        }
        outcome->num_results += run->count;
    }
}

static PyObject *list_of(const uint64_t *results, size_t count)
{
    PyObject *list = PyList_New((Py_ssize_t)count);

    for (size_t i = 0; list != NULL && i < count; i++) {
        PyObject *value = PyLong_FromUnsignedLongLong(results[i]);

        if (value == NULL || PyList_SetItem(list, (Py_ssize_t)i, value) != 0)
            Py_CLEAR(list);
    }
    return list;
}

static bool raise_expired(struct mmio_object *self, const uint64_t *results, const struct outcome *outcome)
{
    PyObject *list = list_of(results, outcome->num_results), *error = NULL, *step = NULL;
    PyObject *message = PyUnicode_FromFormat("%U: the poll of step %zu expired; the last value is %s", self->owner->name,
                                             outcome->step, core_hex(results[outcome->num_results]).text);

    if (list != NULL && message != NULL)
        error = PyObject_CallFunctionObjArgs(core_errors.deadline, message, NULL);
    if (error != NULL)
        step = PyLong_FromSize_t(outcome->step);
    if (step != NULL && PyObject_SetAttrString(error, "step", step) == 0 &&
        PyObject_SetAttrString(error, "results", list) == 0)
        PyErr_SetObject(core_errors.deadline, error);
    Py_XDECREF(list);
    Py_XDECREF(message);
    Py_XDECREF(error);
    Py_XDECREF(step);
    return false;
}

static bool run_program(struct mmio_object *self, const struct program_object *program, uint64_t *results)
{
    struct outcome outcome = {0};
    PyThreadState *state = NULL;
    struct reader_slot *slot;

    if (!check_program(self, program) || !section_enter(self, &slot))
        return false;
    if (program->polls || program->num_steps > CORE_MANY)
        state = PyEval_SaveThread();
    execute(self, program, results, &outcome);
    uint32_t gate = section_finish(self, slot);

    if (state != NULL)
        PyEval_RestoreThread(state);
    if (gate != 0)
        return raise_gate(self->owner, gate);
    return !outcome.expired || raise_expired(self, results, &outcome);
}

static struct program_object *program_argument(PyObject *object)
{
    if (PyObject_TypeCheck(object, core_program_type))
        return (struct program_object *)object;
    PyErr_Format(PyExc_TypeError, "a Program is needed, not %R: make one with Program([...])", object);
    return NULL;
}

PyObject *mmio_run(PyObject *object, PyObject *argument)
{
    struct program_object *program = program_argument(argument);
    uint64_t *results = program == NULL ? NULL : malloc((program->num_results + 1) * sizeof(*results));
    PyObject *list = NULL;

    if (results == NULL)
        return program == NULL ? NULL : PyErr_NoMemory();
    if (run_program((struct mmio_object *)object, program, results))
        list = list_of(results, program->num_results);
    free(results);
    return list;
}

PyObject *mmio_run_into(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    struct program_object *program;
    Py_buffer buffer;
    bool good = false;

    if (nargs != 2) {
        PyErr_Format(PyExc_TypeError, "run_into() takes a program and a buffer (%zd arguments given)", nargs);
        return NULL;
    }
    program = program_argument(args[0]);
    if (program == NULL || PyObject_GetBuffer(args[1], &buffer, PyBUF_WRITABLE) != 0)
        return NULL;
    if ((size_t)buffer.len / sizeof(uint64_t) < program->num_results || (uintptr_t)buffer.buf % sizeof(uint64_t) != 0)
        PyErr_Format(core_errors.argument, "the buffer needs %zu bytes (8 for each result), 8-aligned; it has %zd",
                     program->num_results * sizeof(uint64_t), buffer.len);
    else
        good = run_program((struct mmio_object *)object, program, buffer.buf);
    PyBuffer_Release(&buffer);
    return good ? PyLong_FromSize_t(program->num_results) : NULL;
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

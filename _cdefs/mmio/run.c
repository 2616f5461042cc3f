/* SPDX-License-Identifier: MIT */
/* Methods of Mmio that run a register program: checked as a whole, then done in one read section. */
#include "program.h"
#include "trace.h"

#include <stdlib.h>

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
    int64_t begin = trace_begin();

    execute(self, program, results, &outcome);
    uint32_t gate = section_finish(self, slot);

    if (state != NULL)
        PyEval_RestoreThread(state);
    trace_end(self, TRACE_PROGRAM, begin, 0, 0, program->num_steps);
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

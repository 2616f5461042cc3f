/* SPDX-License-Identifier: MIT */
/*
 * Register accessors: read8 to read64, write8 to write64.
 *
 * A call of Python's costs about 17 ns, and what is here on top of the bare access costs one or two, because the
 * usual case is one straight line without a call: everything unusual (bad arguments, a closed gate, an explicit
 * section, memory that goes away meanwhile, a writer to be woken) is found by a few comparisons and done elsewhere.
 */
#include "trace.h"

/* ---- checks ---- */

bool mmio_offset_slow(PyObject *value, size_t *offset)
{
    if (!PyErr_Occurred())
        return true; /* an honest 2**64 - 1: bounds will refuse it */
    PyErr_Clear();
    PyObject *index = PyNumber_Index(value);

    if (index == NULL) {
        PyErr_Clear();
        PyErr_Format(PyExc_TypeError, "an offset must be an integer, not %R", value);
        return false;
    }
    *offset = PyLong_AsSize_t(index);
    Py_DECREF(index);
    if (*offset == (size_t)-1 && PyErr_Occurred()) {
        PyErr_Clear();
        PyErr_Format(core_errors.bounds, "offset %R is outside of every region: offsets are bytes from 0 up", value);
        return false;
    }
    return true;
}

bool mmio_check_slow(struct mmio_object *self, size_t offset, size_t size, size_t width)
{
    if (offset > self->size || size > self->size - offset) {
        PyErr_Format(core_errors.bounds, "%zu bytes at offset %zu of %U end beyond the region's %zu bytes", size, offset,
                     self->owner->name, self->size);
        return false;
    }
    if ((((uintptr_t)self->base + offset) & (width - 1)) != 0) {
        PyErr_Format(core_errors.alignment, "offset %zu is not a multiple of the access width, %zu bytes", offset, width);
        return false;
    }
    for (size_t i = 0; i < self->num_spans; i++) {
        size_t in = offset - self->spans[i].start;

        if (in < self->spans[i].size && size <= self->spans[i].size - in)
            return true;
    }
    if (size == 0)
        return true;
    PyErr_Format(core_errors.bounds,
                 "%zu bytes at offset %zu of %U lie in a part of the region that the kernel does not let be mapped; "
                 "use pread and pwrite of the region for it",
                 size, offset, self->owner->name);
    return false;
}

bool mmio_writable(struct mmio_object *self)
{
    if (self->writable)
        return true;
    PyErr_Format(core_errors.argument, "%U: this region is read-only", self->owner->name);
    return false;
}

/* ---- the unusual ---- */

static PyObject *to_python(uint64_t value)
{
    return PyLong_FromUnsignedLong(value);
}

/* A read of which something was not as usual; the offset is parsed again if it was no good. */
static PyObject *read_slow(struct mmio_object *self, PyObject *argument, size_t offset, unsigned width)
{
    struct reader_slot *slot;

    if (offset == (size_t)-1 && !mmio_offset_slow(argument, &offset))
        return NULL;
    if (!mmio_check(self, offset, width, width) || !section_enter(self, &slot))
        return NULL;
    int64_t begin = trace_begin();
    uint64_t value = io_read(self->base + offset, width);

    trace_end(self, TRACE_READ, begin, offset, width, value);
    return section_leave(self, slot) ? to_python(value) : NULL;
}

static PyObject *write_slow(struct mmio_object *self, PyObject *const *args, Py_ssize_t nargs, unsigned width)
{
    struct reader_slot *slot;
    uint64_t value;
    size_t offset;

    PyErr_Clear(); /* a conversion that failed is made again, for its error */
    if (nargs != 2) {
        PyErr_Format(PyExc_TypeError, "write%u() takes an offset and a value (%zd arguments given)", 8 * width, nargs);
        return NULL;
    }
    if (!mmio_offset(args[0], &offset) || !core_unsigned(args[1], UINT64_MAX >> (64 - 8 * width), "the value", &value) ||
        !mmio_check(self, offset, width, width) || !mmio_writable(self) || !section_enter(self, &slot))
        return NULL;
    int64_t begin = trace_begin();

    io_write(self->base + offset, width, value);
    trace_end(self, TRACE_WRITE, begin, offset, width, value);
    if (!section_leave(self, slot))
        return NULL;
    Py_RETURN_NONE;
}

/* The access was made, and something else is to be done: wake a writer, or report that the memory went away. */
static bool left_slow(struct mmio_object *self, uint32_t left)
{
    if ((left & SLOT_WAITED) != 0)
        lock_wake_writer(&self->window->lock);
    left &= ~SLOT_WAITED;
    return left == 0 || raise_gate(self->owner, left);
}

/* ---- the usual ---- */

/* Is an aligned access of this width in the part below end? One comparison: the rotation makes bits that must be zero
 * the top ones, and the offset too large. An offset that was no good is -1, and too large as well. */
static inline bool usual(size_t offset, size_t end, unsigned shift)
{
    size_t unit = shift == 0 ? offset : offset >> shift | offset << (64 - shift);

    return likely(unit < end >> shift);
}

/* Leave, and look at the gate: zero when there is nothing else to do. */
static inline uint32_t leave(struct memory_lock *lock, struct reader_slot *slot)
{
    atomic_signal_fence(memory_order_seq_cst); /* the access is before the look at the gate */
    uint32_t gate = atomic_load_explicit(&lock->gate, memory_order_relaxed) & GATE_MEMORY;

    return gate | (atomic_exchange_explicit(&slot->word, 0, memory_order_release) & SLOT_WAITED);
}

#define ACCESSOR(bits, shift)                                                                    \
    PyObject *mmio_read##bits(PyObject *object, PyObject *argument)                              \
    {                                                                                            \
        struct mmio_object *self = (struct mmio_object *)object;                                 \
        size_t offset = PyLong_AsSize_t(argument);                                               \
        struct reader_slot *slot;                                                                \
                                                                                                 \
        if (!usual(offset, self->fast_end, shift) ||                                             \
            unlikely((slot = lock_enter_fast(&self->window->lock)) == NULL))                     \
            return read_slow(self, argument, offset, bits / 8);                                  \
        uint##bits##_t value = io_read##bits(self->base + offset);                               \
        uint32_t left = leave(&self->window->lock, slot);                                        \
                                                                                                 \
        if (unlikely(left != 0) && !left_slow(self, left))                                       \
            return NULL;                                                                         \
        return PyLong_FromUnsignedLong(value);                                                   \
    }                                                                                            \
    PyObject *mmio_write##bits(PyObject *object, PyObject *const *args, Py_ssize_t nargs)        \
    {                                                                                            \
        struct mmio_object *self = (struct mmio_object *)object;                                 \
        struct reader_slot *slot;                                                                \
        size_t offset, value;                                                                    \
                                                                                                 \
        if (unlikely(nargs != 2))                                                                \
            return write_slow(self, args, nargs, bits / 8);                                      \
        offset = PyLong_AsSize_t(args[0]);                                                       \
        value = PyLong_AsSize_t(args[1]);                                                        \
        if (!usual(offset, self->fast_write_end, shift) || unlikely(value > UINT##bits##_MAX) || \
            unlikely(value == (size_t)-1) ||                                                     \
            unlikely((slot = lock_enter_fast(&self->window->lock)) == NULL))                     \
            return write_slow(self, args, nargs, bits / 8);                                      \
        io_write##bits(self->base + offset, (uint##bits##_t)value);                              \
        uint32_t left = leave(&self->window->lock, slot);                                        \
                                                                                                 \
        if (unlikely(left != 0) && !left_slow(self, left))                                       \
            return NULL;                                                                         \
        Py_RETURN_NONE;                                                                          \
    }

ACCESSOR(8, 0)
ACCESSOR(16, 1)
ACCESSOR(32, 2)
ACCESSOR(64, 3)

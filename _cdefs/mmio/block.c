/* SPDX-License-Identifier: MIT */
/* Methods of Mmio that make many accesses: bulk copies and polling. */
#include "trace.h"

#include <errno.h>
#include <string.h>
#include <time.h>

/* Polling spins this long before it sleeps, then sleeps from the first to the last of these. */
#define POLL_SPIN_NS 20000
#define POLL_SLEEP_MIN_NS 10000
#define POLL_SLEEP_MAX_NS 1000000

/* ---- copies ---- */

/* memcpy of one unit: the buffer need not be aligned; the register is accessed once. */
#define COPY(bits)                                                                    \
    static void copy_in##bits(uint8_t *to, const uint8_t *from, size_t count)         \
    {                                                                                 \
        _Pragma("GCC unroll 8") for (size_t i = 0; i < count; i++) {                  \
            uint##bits##_t unit = ((const volatile uint##bits##_t *)from)[i];         \
                                                                                      \
            memcpy(to + i * sizeof(unit), &unit, sizeof(unit));                       \
        }                                                                             \
        io_after_read();                                                              \
    }                                                                                 \
    static void copy_out##bits(uint8_t *to, const uint8_t *from, size_t count)        \
    {                                                                                 \
        io_before_write();                                                            \
        _Pragma("GCC unroll 8") for (size_t i = 0; i < count; i++) {                  \
            uint##bits##_t unit;                                                      \
                                                                                      \
            memcpy(&unit, from + i * sizeof(unit), sizeof(unit));                     \
            ((volatile uint##bits##_t *)to)[i] = unit;                                \
        }                                                                             \
    }

/* No byte order here: the bytes of a little-endian register are copied as they are. */
COPY(8)
COPY(16)
COPY(32)
COPY(64)

static void copy_in(uint8_t *to, const uint8_t *from, size_t size, size_t width)
{
    switch (width) {
    case 1:
        copy_in8(to, from, size);
        break;
    case 2:
        copy_in16(to, from, size / 2);
        break;
    case 4:
        copy_in32(to, from, size / 4);
        break;
    default:
        copy_in64(to, from, size / 8);
    }
}

static void copy_out(uint8_t *to, const uint8_t *from, size_t size, size_t width)
{
    switch (width) {
    case 1:
        copy_out8(to, from, size);
        break;
    case 2:
        copy_out16(to, from, size / 2);
        break;
    case 4:
        copy_out32(to, from, size / 4);
        break;
    default:
        copy_out64(to, from, size / 8);
    }
}

/* Copy within one read section, without the GIL if it is long; in says the direction. */
static bool copy(struct mmio_object *self, size_t offset, uint8_t *buffer, size_t size, size_t width, bool in)
{
    PyThreadState *state = NULL;
    struct reader_slot *slot;
    uint8_t *at = self->base + offset;

    if (!section_enter(self, &slot))
        return false;
    if (size / width > CORE_MANY)
        state = PyEval_SaveThread();
    int64_t begin = trace_begin();

    if (in)
        copy_in(buffer, at, size, width);
    else
        copy_out(at, buffer, size, width);
    uint32_t gate = section_finish(self, slot);

    if (state != NULL)
        PyEval_RestoreThread(state);
    trace_end(self, in ? TRACE_BLOCK_READ : TRACE_BLOCK_WRITE, begin, offset, width, size);
    return gate == 0 || raise_gate(self->owner, gate);
}

static bool parse_width(PyObject *value, size_t *width)
{
    uint64_t number;

    if (!core_unsigned(value, UINT64_MAX, "width", &number))
        return false;
    *width = number;
    if (number == 1 || number == 2 || number == 4 || number == 8)
        return true;
    PyErr_Format(core_errors.argument, "a width is 1, 2, 4 or 8 bytes, not %llu", (unsigned long long)number);
    return false;
}

/* The checks that both directions share. */
static bool check_block(struct mmio_object *self, size_t offset, size_t size, size_t width)
{
    if (size % width != 0) {
        PyErr_Format(core_errors.alignment, "the buffer's size, %zu bytes, is not a multiple of the access width, %zu", size,
                     width);
        return false;
    }
    return mmio_check(self, offset, size, width);
}

PyObject *mmio_read_block32(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    struct mmio_object *self = (struct mmio_object *)object;
    uint64_t count;
    size_t offset;

    if (nargs != 2) {
        PyErr_Format(PyExc_TypeError, "read_block32() takes an offset and a count (%zd arguments given)", nargs);
        return NULL;
    }
    if (!mmio_offset(args[0], &offset) || !core_unsigned(args[1], SIZE_MAX / 8, "count", &count) ||
        !mmio_check(self, offset, count * 4, 4))
        return NULL;
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(count * 4));

    if (bytes != NULL && !copy(self, offset, (uint8_t *)PyBytes_AsString(bytes), count * 4, 4, true))
        Py_CLEAR(bytes);
    return bytes;
}

static PyObject *transfer(PyObject *object, PyObject *const *args, Py_ssize_t nargs, bool in)
{
    struct mmio_object *self = (struct mmio_object *)object;
    size_t offset, width = 4;
    Py_buffer buffer;

    if (nargs != 2 && nargs != 3) {
        PyErr_Format(PyExc_TypeError, "%s() takes an offset, a buffer and a width (%zd arguments given)",
                     in ? "readinto" : "write_block", nargs);
        return NULL;
    }
    if (!mmio_offset(args[0], &offset) || (nargs == 3 && !parse_width(args[2], &width)))
        return NULL;
    if (!in && !mmio_writable(self))
        return NULL;
    if (PyObject_GetBuffer(args[1], &buffer, in ? PyBUF_WRITABLE : PyBUF_SIMPLE) != 0)
        return NULL;
    size_t size = (size_t)buffer.len;
    bool good = check_block(self, offset, size, width) && copy(self, offset, buffer.buf, size, width, in);

    PyBuffer_Release(&buffer);
    return good ? PyLong_FromSize_t(size) : NULL;
}

PyObject *mmio_readinto(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    return transfer(object, args, nargs, true);
}

PyObject *mmio_write_block(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    return transfer(object, args, nargs, false);
}

/* ---- polling ---- */

struct poll {
    const void *at;
    unsigned width;
    uint64_t mask, equals, value; /* value: the last one read */
    int64_t deadline;
    long sleep_ns;
    int64_t spin_until;
};

enum poll_end { POLL_MATCH, POLL_EXPIRED, POLL_SLICE, POLL_REFUSED };

/* Look until the slice is over, a read section for each look. Without the GIL. */
static enum poll_end poll_slice(struct mmio_object *self, struct poll *poll, int64_t slice)
{
    for (;;) {
        struct reader_slot *slot;
        int64_t now = lock_now(); /* before the look: one look is always made after the deadline */

        if (lock_enter(&self->window->lock, &slot) != LOCK_ENTERED)
            return POLL_REFUSED;
        poll->value = io_read(poll->at, poll->width);
        if (section_finish(self, slot) != 0)
            return POLL_REFUSED;
        if ((poll->value & poll->mask) == poll->equals)
            return POLL_MATCH;
        if (now >= poll->deadline)
            return POLL_EXPIRED;
        if (now >= slice)
            return POLL_SLICE;
        if (now < poll->spin_until) {
            lock_relax();
            continue;
        }
        struct timespec t = {.tv_sec = 0, .tv_nsec = poll->sleep_ns};

        clock_nanosleep(CLOCK_MONOTONIC, 0, &t, NULL);
        if (poll->sleep_ns < POLL_SLEEP_MAX_NS)
            poll->sleep_ns *= 2;
    }
}

static bool poll_wait(struct mmio_object *self, struct poll *poll)
{
    int64_t now = lock_now();

    poll->spin_until = now + POLL_SPIN_NS;
    poll->sleep_ns = POLL_SLEEP_MIN_NS;
    for (;;) {
        enum poll_end end;
        struct reader_slot *slot;

        Py_BEGIN_ALLOW_THREADS
        end = poll_slice(self, poll, lock_now() + CORE_SLICE_NS);
        Py_END_ALLOW_THREADS
        if (end == POLL_MATCH)
            return true;
        if (end == POLL_EXPIRED) {
            PyErr_Format(core_errors.deadline, "%U: the register at %zu did not become %s under mask %s; it is %s",
                         self->owner->name, (size_t)((const uint8_t *)poll->at - self->base),
                         core_hex(poll->equals).text, core_hex(poll->mask).text, core_hex(poll->value).text);
            return false;
        }
        if (PyErr_CheckSignals() != 0)
            return false;
        /* refused: find out why, or sit out a writer that does not zap */
        if (end == POLL_REFUSED) {
            if (!section_enter(self, &slot) || !section_leave(self, slot))
                return false;
        }
    }
}

PyObject *mmio_poll(PyObject *object, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"offset", "width", "mask", "equals", "timeout", NULL};
    struct mmio_object *self = (struct mmio_object *)object;
    PyObject *offset_, *width_, *mask_, *equals_, *timeout_;
    struct poll poll = {0};
    size_t offset, width;

    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OOOOO:poll", names, &offset_, &width_, &mask_, &equals_, &timeout_) ||
        !mmio_offset(offset_, &offset) || !parse_width(width_, &width))
        return NULL;
    uint64_t max = UINT64_MAX >> (64 - 8 * width);

    if (!core_unsigned(mask_, max, "mask", &poll.mask) || !core_unsigned(equals_, max, "equals", &poll.equals) ||
        !core_deadline(timeout_, &poll.deadline) || !mmio_check(self, offset, width, width))
        return NULL;
    if ((poll.equals & ~poll.mask) != 0) {
        PyErr_SetString(core_errors.argument, "equals has bits outside of mask: the wait could never end");
        return NULL;
    }
    if (lock_reader.sections != 0) {
        PyErr_SetString(core_errors.order, "this thread is inside of a read section: leave access() before polling, "
                                           "a reset would have to wait");
        return NULL;
    }
    poll.at = self->base + offset;
    poll.width = (unsigned)width;
    int64_t begin = trace_begin();
    bool good = poll_wait(self, &poll);

    trace_end(self, TRACE_POLL, begin, offset, width, poll.value);
    return good ? PyLong_FromUnsignedLongLong(poll.value) : NULL;
}

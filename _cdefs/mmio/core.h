/* SPDX-License-Identifier: MIT */
/* What the files of the extension that know Python share. */
#ifndef VFIO_USER_CORE_H
#define VFIO_USER_CORE_H

#include <Python.h>

#include "io.h"
#include "window.h"

/* Above so many accesses a call lets go of the GIL: about what letting go costs on ordinary memory. */
#define CORE_MANY 64
/* Waits that have no timeout of the caller's: for the write lock of zap(), revive() and close(). */
#define CORE_TIMEOUT_NS INT64_C(1000000000)
/* How long a wait goes on before Python's signal handlers are looked after. */
#define CORE_SLICE_NS INT64_C(50000000)

/* Why memory was zapped; other numbers are the caller's. */
enum { REASON_NONE, REASON_RESET, REASON_DISABLED, REASON_GONE, REASON_CLOSE, REASON_FAILED };

struct errors {
    PyObject *argument, *alignment, *bounds, *closed, *forked, *zapped, *disabled, *gone;
    PyObject *order, *busy, *deadline, *os;
};

extern struct errors core_errors;
extern PyTypeObject *core_window_type, *core_mmio_type, *core_program_type;

struct window_object {
    PyObject_HEAD
    struct window *window;
    PyObject *name;
};

struct span {
    size_t start, size;
};

struct mmio_object {
    PyObject_HEAD
    struct window *window;
    uint8_t *base;     /* address of offset 0 */
    size_t fast_end;   /* accesses of any width below it are good if aligned; a multiple of 8, or 0 */
    size_t fast_write_end; /* the same for writes */
    struct span first; /* the first part that is mapped; most regions have no other */
    size_t size;
    struct window_object *owner;
    struct span *spans; /* all parts that are mapped, sorted, not abutting */
    size_t num_spans;
    bool writable;
    PyObject *name; /* of the region, for traces */
    /* trace.c's: the list of all accessors, and what this one is called in which trace */
    struct mmio_object *next, **link;
    uint32_t traced_in, trace_name;
};

/* ---- raise.c: each sets an exception and returns false, so that a caller can `return raise_...` ---- */

bool raise_gate(struct window_object *owner, uint32_t gate);
bool raise_busy(struct window_object *owner, const char *doing);
bool raise_os(int error, const char *what, const char *hint);
bool raise_wait(int error, struct window_object *owner);
bool core_raise_setup(void);

/* ---- arguments ---- */

/* Seconds to a deadline; false for what is not a finite number from 0 up to a year. */
bool core_deadline(PyObject *seconds, int64_t *deadline);
/* An integer from 0 to max; what names it in the error. */
bool core_unsigned(PyObject *value, uint64_t max, const char *what, uint64_t *out);

/* Registers in messages: PyUnicode_FromFormat() of 3.11 has no 64-bit hexadecimal. */
struct hex {
    char text[24];
};

struct hex core_hex(uint64_t value);

/* ---- types ---- */

bool core_window_setup(PyObject *module);
bool core_mmio_setup(PyObject *module);
bool core_program_setup(PyObject *module);
bool core_proxy_setup(PyObject *module);
bool core_ledger_setup(PyObject *module);
bool core_access_setup(PyObject *module);
bool core_ring_setup(PyObject *module);
bool core_trace_setup(PyObject *module);
bool core_cell_setup(PyObject *module);

/* window_lock.c: take the write lock within the deadline, without the GIL; undo by lock_write_end(). */
bool core_write_lock(struct window_object *self, int64_t deadline);
/* Wait until the memory is there and no writer in; not inside of a section. */
bool core_wait_open(struct window_object *self, int64_t deadline);
bool raise_waiting(void);
/* An explicit read section: with wait, a zap is sat out until the deadline, else only a writer before it zaps. */
bool core_acquire(struct window_object *self, bool wait, int64_t deadline);
bool core_release(struct window_object *self);
PyObject *core_zap_many(PyObject *module, PyObject *args, PyObject *keywords);

/* section.c: enter where lock_enter_fast() did not; *slot stays NULL inside of an explicit section. */
bool section_enter_slow(struct mmio_object *self, struct reader_slot **slot);

/* accessor.c: bounds, holes and alignment of an access of size bytes by units of width. */
bool mmio_writable(struct mmio_object *self);
/* mmio_type.c: open or close the fast path of the accessors. */
void mmio_set_fast(struct mmio_object *self);
bool mmio_check_slow(struct mmio_object *self, size_t offset, size_t size, size_t width);

/* accessor.c: methods of Mmio */
#define CORE_ACCESSOR(bits)                                            \
    PyObject *mmio_read##bits(PyObject *self, PyObject *argument);     \
    PyObject *mmio_write##bits(PyObject *self, PyObject *const *args, Py_ssize_t nargs);
CORE_ACCESSOR(8)
CORE_ACCESSOR(16)
CORE_ACCESSOR(32)
CORE_ACCESSOR(64)
/* access.c: method of Mmio */
PyObject *mmio_access(PyObject *self, PyObject *args, PyObject *keywords);
/* block.c: methods of Mmio */
PyObject *mmio_read_block32(PyObject *self, PyObject *const *args, Py_ssize_t nargs);
PyObject *mmio_readinto(PyObject *self, PyObject *const *args, Py_ssize_t nargs);
PyObject *mmio_write_block(PyObject *self, PyObject *const *args, Py_ssize_t nargs);
PyObject *mmio_poll(PyObject *self, PyObject *args, PyObject *keywords);
/* run.c: methods of Mmio */
PyObject *mmio_run(PyObject *self, PyObject *program);
PyObject *mmio_run_into(PyObject *self, PyObject *const *args, Py_ssize_t nargs);

/* ---- the read section of one accessor ---- */

/* The gate's bits that speak of the memory; a writer that waits is no concern of who is inside. */
#define GATE_MEMORY (~GATE_WRITER)

static inline bool section_enter(struct mmio_object *self, struct reader_slot **slot)
{
    struct reader_slot *other;

    *slot = lock_enter_fast(&self->window->lock);
    if (likely(*slot != NULL))
        return true;
    if (!section_enter_slow(self, &other))
        return false;
    *slot = other; /* not its address: the caller's slot stays in a register */
    return true;
}

/*
 * Leave, and find out whether the memory was there all the time: 0, or the gate's bits. Needs no GIL, and
 * must not wait for it: that would hold up a writer.
 */
static inline uint32_t section_finish(struct mmio_object *self, struct reader_slot *slot)
{
    atomic_signal_fence(memory_order_seq_cst); /* the access is before the look at the gate */
    uint32_t gate = atomic_load_explicit(&self->window->lock.gate, memory_order_relaxed) & GATE_MEMORY;

    lock_leave(&self->window->lock, slot);
    return gate;
}

/* The same for who has the GIL; false with an exception if the memory went away. */
static inline bool section_leave(struct mmio_object *self, struct reader_slot *slot)
{
    uint32_t gate = section_finish(self, slot);

    return likely(gate == 0) || raise_gate(self->owner, gate);
}

/* The accesses of a call must lie in one mapped part, each unit on its natural alignment. */
static inline bool mmio_check(struct mmio_object *self, size_t offset, size_t size, size_t width)
{
    size_t in = offset - self->first.start;

    if (likely(in < self->first.size && size <= self->first.size - in &&
               (((uintptr_t)self->base + offset) & (width - 1)) == 0))
        return true;
    return mmio_check_slow(self, offset, size, width);
}

bool mmio_offset_slow(PyObject *value, size_t *offset);

static inline bool mmio_offset(PyObject *value, size_t *offset)
{
    *offset = PyLong_AsSize_t(value);
    return likely(*offset != (size_t)-1) || mmio_offset_slow(value, offset);
}

#endif

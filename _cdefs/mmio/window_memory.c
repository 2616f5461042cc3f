/* SPDX-License-Identifier: MIT */
/* Methods of Window: map, zap, revive, close. */
#include "window_type.h"

#include "fault.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

/* ---- mapping ---- */

static bool page_aligned(uint64_t value, const char *what)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);

    if (value % page == 0)
        return true;
    PyErr_Format(core_errors.alignment, "%s is not a multiple of the page size, %llu", what, (unsigned long long)page);
    return false;
}

static bool map_failed(struct window_object *self, int error)
{
    if (error == -EBADF && (atomic_load(&self->window->lock.gate) & (GATE_CLOSED | GATE_FORKED)) != 0)
        return raise_gate(self, atomic_load(&self->window->lock.gate));
    if (error == -EBUSY)
        return raise_gate(self, atomic_load(&self->window->lock.gate) | GATE_ZAPPED);
    if (error == -EEXIST) {
        PyErr_SetString(core_errors.argument, "the area overlaps one that is mapped already");
        return false;
    }
    return raise_os(error, "map a region into the window", "");
}

PyObject *method_map(PyObject *object, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"place", "length", "fd", "file_offset", "prot", NULL};
    struct window_object *self = (struct window_object *)object;
    PyObject *place_, *length_, *offset_;
    uint64_t place, length, offset;
    int fd, prot = PROT_READ | PROT_WRITE, error;

    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OOiO|i:map", names, &place_, &length_, &fd, &offset_, &prot) ||
        !core_unsigned(place_, SIZE_MAX, "place", &place) || !core_unsigned(length_, SIZE_MAX, "length", &length) ||
        !core_unsigned(offset_, INT64_MAX, "file_offset", &offset) || !page_aligned(place, "place") ||
        !page_aligned(length, "length") || !page_aligned(offset, "file_offset"))
        return NULL;
    size_t size = atomic_load(&self->window->size);

    if (length == 0 || (prot & ~(PROT_READ | PROT_WRITE)) != 0 || prot == 0) {
        PyErr_SetString(core_errors.argument, "an area needs a length, and PROT_READ or PROT_WRITE or both");
        return NULL;
    }
    if (size != 0 && (place > size || length > size - place)) {
        PyErr_Format(core_errors.bounds, "%llu bytes at %llu do not fit into the window's %zu bytes",
                     (unsigned long long)length, (unsigned long long)place, size);
        return NULL;
    }
    struct area area = {place, length, (int64_t)offset, prot};

    Py_BEGIN_ALLOW_THREADS
    error = window_map(self->window, &area, fd);
    Py_END_ALLOW_THREADS
    if (error != 0) {
        map_failed(self, error);
        return NULL;
    }
    Py_RETURN_NONE;
}

static bool check_reason(long reason)
{
    if (reason >= 0 && reason <= INT32_MAX)
        return true;
    PyErr_SetString(core_errors.argument, "a reason is a ZapReason, or a number from 0 to 2**31 - 1");
    return false;
}

PyObject *method_zap(PyObject *object, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"reason", "timeout", NULL};
    struct window_object *self = (struct window_object *)object;
    PyObject *timeout = NULL;
    int64_t deadline = lock_now() + CORE_TIMEOUT_NS;
    long reason = REASON_NONE;
    int error;

    if (!PyArg_ParseTupleAndKeywords(args, keywords, "|lO:zap", names, &reason, &timeout) || !check_reason(reason) ||
        (timeout != NULL && !core_deadline(timeout, &deadline)) || !core_write_lock(self, deadline))
        return NULL;
    fault_assert();
    Py_BEGIN_ALLOW_THREADS
    error = window_zap(self->window, (int32_t)reason);
    lock_write_end(&self->window->lock);
    Py_END_ALLOW_THREADS
    if (error != 0) {
        raise_os(error, "take the device's memory away (zap)", "");
        return NULL;
    }
    Py_RETURN_NONE;
}

PyObject *method_revive(PyObject *object, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"fd", "timeout", NULL};
    struct window_object *self = (struct window_object *)object;
    PyObject *timeout = NULL;
    int64_t deadline = lock_now() + CORE_TIMEOUT_NS;
    int fd, error;

    if (!PyArg_ParseTupleAndKeywords(args, keywords, "i|O:revive", names, &fd, &timeout) ||
        (timeout != NULL && !core_deadline(timeout, &deadline)) || !core_write_lock(self, deadline))
        return NULL;
    fault_assert();
    Py_BEGIN_ALLOW_THREADS
    error = window_revive(self->window, fd, deadline);
    lock_write_end(&self->window->lock);
    Py_END_ALLOW_THREADS
    if (error == -ETIMEDOUT)
        PyErr_Format(core_errors.deadline, "fault handlers in the window of %U did not finish in time; it stays as it was",
                     self->name);
    else if (error != 0)
        raise_os(error, "map the device's memory again (revive)", "The memory stays zapped");
    if (error != 0)
        return NULL;
    Py_RETURN_NONE;
}

PyObject *method_close(PyObject *object, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"timeout", NULL};
    struct window_object *self = (struct window_object *)object;
    PyObject *timeout = NULL;
    int64_t deadline = lock_now() + CORE_TIMEOUT_NS;
    uint32_t gate = atomic_load(&self->window->lock.gate);
    bool locked = false;
    int error;

    if (!PyArg_ParseTupleAndKeywords(args, keywords, "|O:close", names, &timeout) ||
        (timeout != NULL && !core_deadline(timeout, &deadline)))
        return NULL;
    if ((gate & GATE_CLOSED) != 0)
        Py_RETURN_NONE;
    /* a child's window is dead: nobody reads it, and there is nothing to wait for */
    if ((gate & GATE_FORKED) == 0) {
        if (!core_write_lock(self, deadline)) {
            if ((atomic_load(&self->window->lock.gate) & GATE_CLOSED) == 0)
                return NULL;
            PyErr_Clear(); /* another thread has closed it meanwhile */
            Py_RETURN_NONE;
        }
        locked = true;
    }
    Py_BEGIN_ALLOW_THREADS
    error = window_close(self->window);
    if (locked)
        lock_write_end(&self->window->lock);
    Py_END_ALLOW_THREADS
    if (error != 0 && error != -EALREADY) {
        raise_os(error, "take the device's memory away (close)", "");
        return NULL;
    }
    Py_RETURN_NONE;
}

/* ---- several windows ---- */

/* Windows out of a sequence, each locked by this thread and none twice; NULL with an exception. */
static struct window **collect(PyObject *items)
{
    Py_ssize_t count = PyTuple_Size(items);
    struct window **windows = calloc((size_t)count + 1, sizeof(struct window *));

    if (windows == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *item = PyTuple_GetItem(items, i);

        if (!PyObject_TypeCheck(item, core_window_type)) {
            PyErr_Format(PyExc_TypeError, "zap_many() takes windows, not %R", item);
            goto fail;
        }
        windows[i] = native(item);
        if (!lock_write_owned(&windows[i]->lock)) {
            PyErr_Format(core_errors.order, "take the memory lock of %U for writing before zap_many()",
                         ((struct window_object *)item)->name);
            goto fail;
        }
        for (Py_ssize_t j = 0; j < i; j++) {
            if (windows[j] == windows[i]) {
                PyErr_Format(core_errors.argument, "the window of %U is in the set twice",
                             ((struct window_object *)item)->name);
                goto fail;
            }
        }
    }
    return windows;
fail:
    free(windows);
    return NULL;
}

PyObject *core_zap_many(PyObject *module, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"windows", "reason", NULL};
    PyObject *sequence;
    long reason = REASON_NONE;
    int error;

    (void)module;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O|l:zap_many", names, &sequence, &reason) || !check_reason(reason))
        return NULL;
    PyObject *items = PySequence_Tuple(sequence);
    struct window **windows = items == NULL ? NULL : collect(items);

    if (windows == NULL) {
        Py_XDECREF(items);
        return NULL;
    }
    fault_assert();
    size_t count = (size_t)PyTuple_Size(items);

    Py_BEGIN_ALLOW_THREADS
    error = window_zap_many(windows, count, (int32_t)reason);
    Py_END_ALLOW_THREADS
    free(windows);
    Py_DECREF(items);
    if (error != 0) {
        raise_os(error, "take the devices' memory away (zap)", "");
        return NULL;
    }
    Py_RETURN_NONE;
}

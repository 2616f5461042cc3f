/* SPDX-License-Identifier: MIT */
/* Methods of Window: the memory lock, for writing and for reading. */
#include "window_type.h"

#include <errno.h>
#include <stdlib.h>

/* ---- writing ---- */

/* One try of at most a slice, without the GIL; *begun says whether the gate is ours already. */
static int write_slice(struct memory_lock *lock, bool *begun, int64_t deadline)
{
    int64_t slice = lock_now() + CORE_SLICE_NS;
    int result = 0;

    if (slice > deadline)
        slice = deadline;
    Py_BEGIN_ALLOW_THREADS
    if (!*begun)
        result = lock_write_begin(lock, slice);
    if (result >= 0)
        *begun = true;
    if (result == 0)
        result = lock_write_drain(lock, slice);
    Py_END_ALLOW_THREADS
    return result;
}

/* Waiting for this lock could deadlock with a thread that has it and wants ours. */
static bool raise_order(struct window_object *self)
{
    if (lock_read_depth(&self->window->lock) != 0)
        PyErr_Format(core_errors.order,
                     "this thread is inside of a read section of %U: leave access() before taking its lock for writing",
                     self->name);
    else if (lock_reader.sections != 0)
        PyErr_Format(core_errors.order,
                     "this thread is inside of a read section of another device: leave it before taking the memory lock "
                     "of %U for writing",
                     self->name);
    else
        PyErr_Format(core_errors.order,
                     "this thread has the memory lock of another device for writing: take that of %U together with it, by "
                     "a LockSet",
                     self->name);
    return false;
}

bool core_write_lock(struct window_object *self, int64_t deadline)
{
    struct memory_lock *lock = &self->window->lock;
    bool begun = false;

    for (;;) {
        int result = write_slice(lock, &begun, deadline);
        bool interrupted = result < 0 && PyErr_CheckSignals() != 0;

        if (result >= 0)
            break;
        if (result == -EDEADLK)
            return raise_order(self);
        if (result == -ENOMEM || result == -EAGAIN)
            return raise_wait(result, self);
        if (!interrupted && lock_now() < deadline)
            continue;
        if (!interrupted)
            raise_busy(self, "take it for writing");
        if (begun)
            lock_write_end(lock);
        return false;
    }
    uint32_t gate = atomic_load(&lock->gate);

    if ((gate & (GATE_CLOSED | GATE_FORKED)) == 0)
        return true;
    lock_write_end(lock);
    return raise_gate(self, gate);
}

PyObject *method_lock_write(PyObject *object, PyObject *timeout)
{
    int64_t deadline;

    if (!core_deadline(timeout, &deadline) || !core_write_lock((struct window_object *)object, deadline))
        return NULL;
    Py_RETURN_NONE;
}

PyObject *method_try_lock_write(PyObject *object, PyObject *ignored)
{
    struct window_object *self = (struct window_object *)object;
    struct memory_lock *lock = &self->window->lock;
    uint32_t gate = atomic_load(&lock->gate);
    int result = 0;

    (void)ignored;
    if ((gate & (GATE_CLOSED | GATE_FORKED)) != 0) {
        raise_gate(self, gate);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    result = lock_write_try(lock);
    Py_END_ALLOW_THREADS
    if (result == 0 || result == -EBUSY)
        return PyBool_FromLong(result == 0);
    if (result == -EDEADLK)
        raise_order(self);
    else
        raise_wait(result, self);
    return NULL;
}

PyObject *method_unlock_write(PyObject *object, PyObject *ignored)
{
    (void)ignored;
    if (lock_write_end(&native(object)->lock) == 0)
        Py_RETURN_NONE;
    PyErr_Format(core_errors.order, "this thread does not hold the memory lock of %U for writing",
                 ((struct window_object *)object)->name);
    return NULL;
}

PyObject *method_write_locked(PyObject *object, PyObject *ignored)
{
    (void)ignored;
    return PyBool_FromLong(lock_write_owned(&native(object)->lock));
}

PyObject *method_holders(PyObject *object, PyObject *ignored)
{
    struct memory_lock *lock = &native(object)->lock;
    size_t count = lock_holders(lock, NULL, 0), room = count + 16;
    struct lock_holder *holders = calloc(room, sizeof(*holders));
    PyObject *list = holders == NULL ? PyErr_NoMemory() : PyList_New(0);

    (void)ignored;
    if (list != NULL)
        count = lock_holders(lock, holders, room);
    for (size_t i = 0; list != NULL && i < count && i < room; i++) {
        PyObject *item = Py_BuildValue("(ld)", (long)holders[i].tid, (double)holders[i].held_ns / 1e9);

        if (item == NULL || PyList_Append(list, item) != 0)
            Py_CLEAR(list);
        Py_XDECREF(item);
    }
    free(holders);
    return list;
}

/* ---- reading ---- */

PyObject *method_wait_live(PyObject *object, PyObject *timeout)
{
    int64_t deadline;

    if (!core_deadline(timeout, &deadline))
        return NULL;
    if (lock_reader.sections != 0) {
        raise_waiting();
        return NULL;
    }
    if (!core_wait_open((struct window_object *)object, deadline))
        return NULL;
    Py_RETURN_NONE;
}

PyObject *method_acquire_read(PyObject *object, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"wait", NULL};
    PyObject *wait = NULL;
    int64_t deadline = 0;

    if (!PyArg_ParseTupleAndKeywords(args, keywords, "|O:acquire_read", names, &wait))
        return NULL;
    if (wait == Py_None)
        wait = NULL;
    if (wait != NULL && !core_deadline(wait, &deadline))
        return NULL;
    if (!core_acquire((struct window_object *)object, wait != NULL, deadline))
        return NULL;
    Py_RETURN_NONE;
}

PyObject *method_release_read(PyObject *object, PyObject *ignored)
{
    (void)ignored;
    return core_release((struct window_object *)object) ? Py_NewRef(Py_None) : NULL;
}

PyObject *method_read_depth(PyObject *object, PyObject *ignored)
{
    (void)ignored;
    return PyLong_FromUnsignedLong(lock_read_depth(&native(object)->lock));
}

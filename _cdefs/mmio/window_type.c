/* SPDX-License-Identifier: MIT */
/* The type Window: one device's range of addresses, with the device's memory lock. */
#include "core.h"

#include "fault.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

PyTypeObject *core_window_type;

static struct window *native(PyObject *self)
{
    return ((struct window_object *)self)->window;
}

/* ---- construction ---- */

static PyObject *window_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"size", "align", "name", NULL};
    PyObject *size_, *align_ = NULL, *name = NULL;
    uint64_t size, align = WINDOW_GRANULE;

    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O|OU:Window", names, &size_, &align_, &name) ||
        !core_unsigned(size_, UINT64_C(1) << 46, "size", &size) ||
        (align_ != NULL && !core_unsigned(align_, UINT64_C(1) << 40, "align", &align)))
        return NULL;
    if (size == 0 || align < WINDOW_GRANULE || (align & (align - 1)) != 0) {
        PyErr_SetString(core_errors.argument, "a window needs a size above 0, and an align that is a power of two from 2 MiB up");
        return NULL;
    }
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    struct window_object *self = (struct window_object *)alloc(type, 0);

    if (self == NULL)
        return NULL;
    self->name = name != NULL ? name : PyUnicode_FromString("the device");
    if (name != NULL)
        Py_INCREF(name);
    int error = self->name == NULL ? -ENOMEM : fault_assert();

    if (error >= 0)
        error = window_open(size, align, &self->window);
    if (error >= 0)
        return (PyObject *)self;
    raise_os(error, "reserve addresses for the device's memory",
             error == -ENOMEM ? "The window's size counts against RLIMIT_AS (ulimit -v) and max_map_count" : "");
    Py_DECREF(self);
    return NULL;
}

/* Warn of a window that nobody closed; the exception under way, if any, is kept. */
static void warn_open(struct window_object *self)
{
    PyObject *type, *value, *traceback;

    if ((atomic_load(&self->window->lock.gate) & (GATE_CLOSED | GATE_FORKED)) != 0)
        return;
    PyErr_Fetch(&type, &value, &traceback);
    if (PyErr_ResourceWarning(NULL, 1, "unclosed window of %U", self->name) != 0)
        PyErr_WriteUnraisable(NULL);
    PyErr_Restore(type, value, traceback);
}

static void window_dealloc(PyObject *object)
{
    struct window_object *self = (struct window_object *)object;
    PyTypeObject *type = Py_TYPE(object);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);

    /* accessors, and by them views, keep the object alive: none is left */
    if (self->window != NULL) {
        warn_open(self);
        window_discard(self->window);
    }
    Py_XDECREF(self->name);
    release(object);
    Py_DECREF(type);
}

/* ---- the write lock ---- */

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

static PyObject *window_lock_write(PyObject *object, PyObject *timeout)
{
    int64_t deadline;

    if (!core_deadline(timeout, &deadline) || !core_write_lock((struct window_object *)object, deadline))
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *window_try_lock_write(PyObject *object, PyObject *ignored)
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
    if (result == -EDEADLK) {
        raise_order(self);
        return NULL;
    }
    return PyBool_FromLong(result == 0);
}

static PyObject *window_unlock_write(PyObject *object, PyObject *ignored)
{
    (void)ignored;
    if (lock_write_end(&native(object)->lock) == 0)
        Py_RETURN_NONE;
    PyErr_Format(core_errors.order, "this thread does not hold the memory lock of %U for writing",
                 ((struct window_object *)object)->name);
    return NULL;
}

static PyObject *window_write_locked(PyObject *object, PyObject *ignored)
{
    (void)ignored;
    return PyBool_FromLong(lock_write_owned(&native(object)->lock));
}

static PyObject *window_holders(PyObject *object, PyObject *ignored)
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

/* ---- the read section ---- */

/* Wait until the gate is open; false with an exception. Bits that no wait can clear end it. */
static bool wait_open(struct window_object *self, int64_t deadline)
{
    struct memory_lock *lock = &self->window->lock;

    for (;;) {
        uint32_t gate = atomic_load(&lock->gate);
        int64_t now = lock_now(), slice = now + CORE_SLICE_NS;

        if (gate == 0 || (gate == GATE_WRITER && lock_write_owned(lock)))
            return true;
        if ((gate & (GATE_CLOSED | GATE_FORKED)) != 0)
            return raise_gate(self, gate);
        if (now >= deadline) {
            PyErr_Format(core_errors.deadline, "the memory of %U did not come back in time%s", self->name,
                         gate == GATE_WRITER ? ": a writer holds the memory lock" : "");
            return false;
        }
        Py_BEGIN_ALLOW_THREADS
        lock_gate_sleep(lock, gate, slice < deadline ? slice : deadline);
        Py_END_ALLOW_THREADS
        if (PyErr_CheckSignals() != 0)
            return false;
    }
}

static PyObject *window_wait_live(PyObject *object, PyObject *timeout)
{
    int64_t deadline;

    if (!core_deadline(timeout, &deadline))
        return NULL;
    if (lock_read_depth(&native(object)->lock) != 0) {
        PyErr_Format(core_errors.order, "this thread is inside of a read section of %U: waiting there would hold up the writer",
                     ((struct window_object *)object)->name);
        return NULL;
    }
    if (!wait_open((struct window_object *)object, deadline))
        return NULL;
    Py_RETURN_NONE;
}

bool core_acquire(struct window_object *self, bool wait, int64_t deadline)
{
    struct memory_lock *lock = &self->window->lock;

    for (;;) {
        uint32_t gate = atomic_load(&lock->gate);

        if (!wait && (gate & GATE_MEMORY) != 0)
            return raise_gate(self, gate);
        int result = lock_acquire(lock);

        if (result == 0)
            return true;
        if (result != -EBUSY)
            return raise_wait(result, self);
        if (!wait && lock_now() >= deadline)
            return raise_busy(self, "enter a read section");
        if (wait) {
            if (!wait_open(self, deadline))
                return false;
            continue;
        }
        int64_t slice = lock_now() + CORE_SLICE_NS;

        Py_BEGIN_ALLOW_THREADS
        gate = atomic_load(&lock->gate);
        if (gate == GATE_WRITER)
            lock_gate_sleep(lock, gate, slice < deadline ? slice : deadline);
        Py_END_ALLOW_THREADS
        if (PyErr_CheckSignals() != 0)
            return false;
    }
}

static PyObject *window_acquire_read(PyObject *object, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"wait", NULL};
    PyObject *wait = NULL;
    int64_t deadline = lock_now() + CORE_PATIENCE_NS;

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

bool core_release(struct window_object *self)
{
    if (lock_release(&self->window->lock) == 0)
        return true;
    PyErr_Format(core_errors.order,
                 "this thread is in no read section of %U: a section is left by the thread that entered it", self->name);
    return false;
}

static PyObject *window_release_read(PyObject *object, PyObject *ignored)
{
    (void)ignored;
    return core_release((struct window_object *)object) ? Py_NewRef(Py_None) : NULL;
}

static PyObject *window_read_depth(PyObject *object, PyObject *ignored)
{
    (void)ignored;
    return PyLong_FromUnsignedLong(lock_read_depth(&native(object)->lock));
}

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

static PyObject *window_map_(PyObject *object, PyObject *args, PyObject *keywords)
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

static PyObject *window_zap_(PyObject *object, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"reason", "timeout", NULL};
    struct window_object *self = (struct window_object *)object;
    PyObject *timeout = NULL;
    int64_t deadline = lock_now() + CORE_PATIENCE_NS;
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

static PyObject *window_revive_(PyObject *object, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"fd", "timeout", NULL};
    struct window_object *self = (struct window_object *)object;
    PyObject *timeout = NULL;
    int64_t deadline = lock_now() + CORE_PATIENCE_NS;
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

static PyObject *window_close_(PyObject *object, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"timeout", NULL};
    struct window_object *self = (struct window_object *)object;
    PyObject *timeout = NULL;
    int64_t deadline = lock_now() + CORE_PATIENCE_NS;
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

/* ---- properties ---- */

static PyObject *get_address(PyObject *self, void *closure)
{
    (void)closure;
    return PyLong_FromSize_t((size_t)atomic_load(&native(self)->base));
}

static PyObject *get_size(PyObject *self, void *closure)
{
    (void)closure;
    return PyLong_FromSize_t(atomic_load(&native(self)->size));
}

static PyObject *get_state(PyObject *self, void *closure)
{
    uint32_t gate = atomic_load(&native(self)->lock.gate);

    (void)closure;
    if ((gate & GATE_FORKED) != 0)
        return PyLong_FromLong(WINDOW_FORKED);
    return PyLong_FromLong((gate & GATE_CLOSED) != 0 ? WINDOW_CLOSED : (long)atomic_load(&native(self)->state));
}

static PyObject *get_generation(PyObject *self, void *closure)
{
    (void)closure;
    return PyLong_FromUnsignedLongLong(atomic_load(&native(self)->generation) - native(self)->first_generation);
}

static PyObject *get_flagged(PyObject *self, void *closure)
{
    (void)closure;
    return PyBool_FromLong(atomic_load(&native(self)->flag) != FLAG_NONE);
}

static PyObject *get_flag(PyObject *self, void *closure)
{
    (void)closure;
    return PyLong_FromUnsignedLong(atomic_load(&native(self)->flag));
}

static PyObject *get_reason(PyObject *self, void *closure)
{
    (void)closure;
    return PyLong_FromLong(atomic_load(&native(self)->reason));
}

static PyObject *get_name(PyObject *self, void *closure)
{
    PyObject *name = ((struct window_object *)self)->name;

    (void)closure;
    Py_INCREF(name);
    return name;
}

static PyObject *get_exports(PyObject *self, void *closure)
{
    (void)closure;
    return PyLong_FromUnsignedLongLong(atomic_load(&native(self)->exports) / EXPORT_ONE);
}

static PyObject *get_closed(PyObject *self, void *closure)
{
    (void)closure;
    return PyBool_FromLong((atomic_load(&native(self)->lock.gate) & GATE_CLOSED) != 0);
}

static PyObject *window_repr(PyObject *self)
{
    static const char *const states[] = {"live", "zapped", "reviving", "closed", "of the parent process"};
    uint32_t gate = atomic_load(&native(self)->lock.gate), state = atomic_load(&native(self)->state);

    state = (gate & GATE_FORKED) != 0 ? WINDOW_FORKED : (gate & GATE_CLOSED) != 0 ? WINDOW_CLOSED : state;
    return PyUnicode_FromFormat("<Window of %U, %zu bytes at %p, %s>", ((struct window_object *)self)->name,
                                atomic_load(&native(self)->size), (void *)atomic_load(&native(self)->base), states[state]);
}

/* ---- the type ---- */

#define KEYWORDS(function) (PyCFunction)(void (*)(void))(function), METH_VARARGS | METH_KEYWORDS

static PyMethodDef window_methods[] = {
    {"map", KEYWORDS(window_map_),
     "map($self, place, length, fd, file_offset, prot=3)\n--\n\n"
     "Map a part of the device's file at a fixed place in the window (``mmap`` MAP_SHARED | MAP_FIXED).\n\n"
     "The area is remembered, so that revive() can map it again; fd is not kept.\n\n"
     "Args:\n    place: offset in the window, bytes, a multiple of the page size.\n"
     "    length: bytes, a multiple of the page size.\n    fd: the device's file.\n"
     "    file_offset: offset in that file, bytes, a multiple of the page size. For huge mappings it must agree with\n"
     "        place modulo 2 MiB (1 GiB).\n    prot: PROT_READ, PROT_WRITE, or both.\n\n"
     "Raises:\n    ArgumentError, AlignmentError, BoundsError: an argument is wrong, or the area overlaps another.\n"
     "    ZappedError, ClosedError, ForkedError: the window is not live.\n    VfioOSError: mmap failed (errno)."},
    {"zap", KEYWORDS(window_zap_),
     "zap($self, reason=0, timeout=1.0)\n--\n\n"
     "Take the memory away, with one system call: accessors raise, raw views read all-ones.\n\n"
     "Takes the memory lock for writing for the call, unless this thread holds it already.\n\n"
     "Args:\n    reason: a REASON_ constant, or any number from 0 up; becomes ``reason`` of the ZappedError.\n"
     "    timeout: seconds to wait for the lock.\n\n"
     "Raises:\n    MemoryLockBusyError: readers did not leave in time.\n    LockOrderError: this thread is a reader.\n"
     "    VfioOSError: mmap failed (errno); the memory is still there."},
    {"revive", KEYWORDS(window_revive_),
     "revive($self, fd, timeout=1.0)\n--\n\n"
     "Map all areas again, at the same addresses, from the device's file; clears the flag.\n\n"
     "Also for a live window that was flagged by a bus error. Takes the memory lock as zap() does.\n\n"
     "Args:\n    fd: the device's file, which may be another than at map().\n"
     "    timeout: seconds to wait for the lock and for fault handlers under way.\n\n"
     "Raises:\n    MemoryLockBusyError, LockOrderError: as zap().\n    DeadlineError: handlers did not finish.\n"
     "    VfioOSError: mmap failed (errno); everything is zapped."},
    {"close", KEYWORDS(window_close_),
     "close($self, timeout=1.0)\n--\n\n"
     "Take the memory away for good and release the device's file; idempotent.\n\n"
     "The addresses are given back at once, or with the last raw view, which reads all-ones until then.\n\n"
     "Raises:\n    MemoryLockBusyError, LockOrderError: as zap(); the window stays open."},
    {"lock_write", window_lock_write, METH_O,
     "lock_write($self, timeout, /)\n--\n\n"
     "Take the memory lock for writing: new readers wait, and those inside are waited for without the GIL.\n\n"
     "Counted: a thread that holds it may take it again, and may use accessors too.\n\n"
     "Args:\n    timeout: seconds.\n\n"
     "Raises:\n    MemoryLockBusyError: somebody did not leave; ``holders`` has (native thread id, seconds at least).\n"
     "    LockOrderError: this thread is inside of a read section, or has another device's lock for writing.\n"
     "    ClosedError, ForkedError: the window is dead."},
    {"try_lock_write", window_try_lock_write, METH_NOARGS,
     "try_lock_write($self, /)\n--\n\n"
     "Take the memory lock for writing if nobody is in, or leaves within microseconds; return whether it was.\n\n"
     "Raises:\n    LockOrderError, ClosedError, ForkedError: as lock_write()."},
    {"unlock_write", window_unlock_write, METH_NOARGS,
     "unlock_write($self, /)\n--\n\nUndo one lock_write() of this thread.\n\n"
     "Raises:\n    LockOrderError: this thread does not hold the lock for writing."},
    {"write_locked", window_write_locked, METH_NOARGS,
     "write_locked($self, /)\n--\n\nReturn whether this thread holds the memory lock for writing."},
    {"holders", window_holders, METH_NOARGS,
     "holders($self, /)\n--\n\n"
     "Return who is in: (native thread id, seconds at least) of the writer, if any, then of each reader.\n\n"
     "No clock runs in the read path: readers' time counts from when a writer began to wait, else it is 0."},
    {"acquire_read", KEYWORDS(window_acquire_read),
     "acquire_read($self, wait=None)\n--\n\n"
     "Enter a read section: nothing takes the memory away until release_read() of the same thread. Nests.\n\n"
     "Args:\n    wait: seconds to wait for memory that is zapped; None fails at once.\n\n"
     "Raises:\n    ZappedError, MemoryDisabledError, DeviceGoneError: the memory is away.\n"
     "    DeadlineError: it did not come back within wait.\n"
     "    MemoryLockBusyError: a writer held the lock for a second without zapping.\n"
     "    ClosedError, ForkedError: the window is dead."},
    {"release_read", window_release_read, METH_NOARGS,
     "release_read($self, /)\n--\n\nLeave a read section.\n\nRaises:\n    LockOrderError: this thread is in none."},
    {"read_depth", window_read_depth, METH_NOARGS,
     "read_depth($self, /)\n--\n\nReturn in how many nested read sections of this window this thread is."},
    {"wait_live", window_wait_live, METH_O,
     "wait_live($self, timeout, /)\n--\n\n"
     "Wait, without the GIL, until the memory is there and no writer has the lock.\n\n"
     "Raises:\n    DeadlineError: it did not come back in timeout seconds.\n"
     "    LockOrderError: this thread is inside of a read section.\n    ClosedError, ForkedError: the window is dead."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef window_properties[] = {
    {"address", get_address, NULL, "First virtual address; 0 once the range was given back.", NULL},
    {"size", get_size, NULL, "Size in bytes, a multiple of 2 MiB; 0 once the range was given back.", NULL},
    {"state", get_state, NULL, "One of the STATE_ constants.", NULL},
    {"generation", get_generation, NULL, "How often the memory was revived.", NULL},
    {"flagged", get_flagged, NULL, "Whether an access found the memory away since the last revive.", NULL},
    {"flag", get_flag, NULL, "Why it is flagged: one of the FLAG_ constants.", NULL},
    {"reason", get_reason, NULL, "Why it was zapped: the number given to zap().", NULL},
    {"name", get_name, NULL, "The device's name, for messages.", NULL},
    {"exports", get_exports, NULL, "How many raw views are out.", NULL},
    {"closed", get_closed, NULL, "Whether close() was called.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(window_doc,
             "Window(size, align=2097152, name='the device')\n--\n\n"
             "Reserve one range of virtual addresses for all regions of a device, and hold the device's memory lock.\n\n"
             "Addresses in it never change. While the memory is zapped, raw views read all-ones, their writes are lost\n"
             "(or kept in a private copy of the page until the next zap), and accessors raise.\n\n"
             "Limits: a thread that blocks SIGSEGV or SIGBUS dies at a touch of zapped memory; system calls that are given\n"
             "zapped memory fail with EFAULT; faulthandler.enable() after the last open, zap or revive makes such a touch\n"
             "kill the process (install_handler() puts that right).\n\n"
             "Args:\n"
             "    size: bytes; rounded up to 2 MiB. Counts against RLIMIT_AS.\n"
             "    align: of the address, a power of two from 2 MiB up; 1 GiB where a region is that large.\n"
             "    name: the device's, for messages.\n\n"
             "Lifetime:\n"
             "    close() takes the memory away and lets go of the device's file; the addresses go with the last view.\n"
             "    In a forked child the window is dead: views read all-ones, everything else raises ForkedError.\n\n"
             "Locking:\n"
             "    zap(), revive() and close() take the memory lock for writing themselves unless the thread holds it.\n"
             "    All methods are safe from any thread and wait without the GIL.");

static PyType_Slot window_slots[] = {
    {Py_tp_doc, (void *)window_doc}, {Py_tp_new, window_new},           {Py_tp_dealloc, window_dealloc},
    {Py_tp_repr, window_repr},       {Py_tp_methods, window_methods},   {Py_tp_getset, window_properties},
    {0, NULL},
};

static PyType_Spec window_spec = {
    .name = "vfio_user._mmio.Window",
    .basicsize = sizeof(struct window_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = window_slots,
};

bool core_window_setup(PyObject *module)
{
    core_window_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &window_spec, NULL);
    return core_window_type != NULL && PyModule_AddType(module, core_window_type) == 0;
}

/* SPDX-License-Identifier: MIT */
/* The type Window: one device's range of addresses, with the device's memory lock. */
#include "window_type.h"

#include "fault.h"

#include <errno.h>

PyTypeObject *core_window_type;

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
    /* kept over a revive: an accessor that was refused before it still tells the reason */
    if (atomic_load(&native(self)->state) == WINDOW_LIVE)
        return PyLong_FromLong(REASON_NONE);
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
    {"map", KEYWORDS(method_map),
     "map($self, place, length, fd, file_offset, prot=3)\n--\n\n"
     "Map a part of the device's file at a fixed place in the window (``mmap`` MAP_SHARED | MAP_FIXED).\n\n"
     "The area is remembered, so that revive() can map it again; fd is not kept.\n\n"
     "Args:\n    place: offset in the window, bytes, a multiple of the page size.\n"
     "    length: bytes, a multiple of the page size.\n    fd: the device's file.\n"
     "    file_offset: offset in that file, bytes, a multiple of the page size. For huge mappings it must agree with\n"
     "        place modulo 2 MiB (1 GiB).\n    prot: PROT_READ, PROT_WRITE, or both.\n\n"
     "Raises:\n    ArgumentError, AlignmentError, BoundsError: an argument is wrong, or the area overlaps another.\n"
     "    ZappedError, ClosedError, ForkedError: the window is not live.\n    VfioOSError: mmap failed (errno)."},
    {"zap", KEYWORDS(method_zap),
     "zap($self, reason=0, timeout=1.0)\n--\n\n"
     "Take the memory away, with one system call: accessors raise, raw views read all-ones.\n\n"
     "Takes the memory lock for writing for the call, unless this thread holds it already.\n\n"
     "Args:\n    reason: a ``REASON_`` constant, or any number from 0 up; becomes ``reason`` of the ZappedError.\n"
     "    timeout: seconds to wait for the lock.\n\n"
     "Raises:\n    MemoryLockBusyError: readers did not leave in time.\n    LockOrderError: this thread is a reader.\n"
     "    VfioOSError: mmap failed (errno); the memory is still there."},
    {"revive", KEYWORDS(method_revive),
     "revive($self, fd, timeout=1.0)\n--\n\n"
     "Map all areas again, at the same addresses, from the device's file; clears the flag.\n\n"
     "Also for a live window that was flagged by a bus error. Takes the memory lock as zap() does.\n\n"
     "Args:\n    fd: the device's file, which may be another than at map().\n"
     "    timeout: seconds to wait for the lock and for fault handlers under way.\n\n"
     "Raises:\n    MemoryLockBusyError, LockOrderError: as zap().\n    DeadlineError: handlers did not finish.\n"
     "    VfioOSError: mmap failed (errno); everything is zapped."},
    {"close", KEYWORDS(method_close),
     "close($self, timeout=1.0)\n--\n\n"
     "Take the memory away for good and release the device's file; idempotent.\n\n"
     "The addresses are given back at once, or with the last raw view, which reads all-ones until then.\n\n"
     "Raises:\n    MemoryLockBusyError, LockOrderError: as zap(); the window stays open."},
    {"lock_write", method_lock_write, METH_O,
     "lock_write($self, timeout, /)\n--\n\n"
     "Take the memory lock for writing: new readers wait, and those inside are waited for without the GIL.\n\n"
     "Counted: a thread that holds it may take it again, and may use accessors too.\n\n"
     "Args:\n    timeout: seconds.\n\n"
     "Raises:\n    MemoryLockBusyError: somebody did not leave; ``holders`` has (native thread id, seconds at least).\n"
     "    LockOrderError: this thread is inside of a read section, or has another device's lock for writing.\n"
     "    ClosedError, ForkedError: the window is dead."},
    {"try_lock_write", method_try_lock_write, METH_NOARGS,
     "try_lock_write($self, /)\n--\n\n"
     "Take the memory lock for writing if nobody is in, or leaves within microseconds; return whether it was.\n\n"
     "Raises:\n    LockOrderError, ClosedError, ForkedError: as lock_write()."},
    {"unlock_write", method_unlock_write, METH_NOARGS,
     "unlock_write($self, /)\n--\n\nUndo one lock_write() of this thread.\n\n"
     "Raises:\n    LockOrderError: this thread does not hold the lock for writing."},
    {"write_locked", method_write_locked, METH_NOARGS,
     "write_locked($self, /)\n--\n\nReturn whether this thread holds the memory lock for writing."},
    {"holders", method_holders, METH_NOARGS,
     "holders($self, /)\n--\n\n"
     "Return who is in: (native thread id, seconds at least) of the writer, if any, then of each reader.\n\n"
     "No clock runs in the read path: readers' time counts from when a writer began to wait, else it is 0."},
    {"acquire_read", KEYWORDS(method_acquire_read),
     "acquire_read($self, wait=None)\n--\n\n"
     "Enter a read section: nothing takes the memory away until release_read() of the same thread. Nests.\n\n"
     "Args:\n    wait: seconds to wait for memory that is zapped; None fails at once.\n\n"
     "Raises:\n    ZappedError, MemoryDisabledError, DeviceGoneError: the memory is away.\n"
     "    DeadlineError: it did not come back within wait.\n"
     "    MemoryLockBusyError: a writer held the lock for a second without zapping.\n"
     "    ClosedError, ForkedError: the window is dead."},
    {"release_read", method_release_read, METH_NOARGS,
     "release_read($self, /)\n--\n\nLeave a read section.\n\nRaises:\n    LockOrderError: this thread is in none."},
    {"read_depth", method_read_depth, METH_NOARGS,
     "read_depth($self, /)\n--\n\nReturn in how many nested read sections of this window this thread is."},
    {"wait_live", method_wait_live, METH_O,
     "wait_live($self, timeout, /)\n--\n\n"
     "Wait, without the GIL, until the memory is there and no writer has the lock.\n\n"
     "Raises:\n    DeadlineError: it did not come back in timeout seconds.\n"
     "    LockOrderError: this thread is inside of a read section.\n    ClosedError, ForkedError: the window is dead."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef window_properties[] = {
    {"address", get_address, NULL, "First virtual address; 0 once the range was given back.", NULL},
    {"size", get_size, NULL, "Size in bytes, a multiple of 2 MiB; 0 once the range was given back.", NULL},
    {"state", get_state, NULL, "One of the ``STATE_`` constants.", NULL},
    {"generation", get_generation, NULL, "How often the memory was revived.", NULL},
    {"flagged", get_flagged, NULL, "Whether an access found the memory away since the last revive.", NULL},
    {"flag", get_flag, NULL, "Why it is flagged: one of the ``FLAG_`` constants.", NULL},
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

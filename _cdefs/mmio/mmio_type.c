/* SPDX-License-Identifier: MIT */
/* The type Mmio: the accessor of one region, and its raw view. */
#include "trace.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

PyTypeObject *core_mmio_type;

/* ---- raw views ---- */

static bool whole(struct mmio_object *self)
{
    return self->num_spans == 1 && self->spans[0].start == 0 && self->spans[0].size == self->size;
}

static int mmio_getbuffer(PyObject *object, Py_buffer *view, int flags)
{
    struct mmio_object *self = (struct mmio_object *)object;

    view->obj = NULL;
    if (!whole(self)) {
        PyErr_SetString(PyExc_BufferError, "not all of the region is mapped: take a part of it with view(offset, size)");
        return -1;
    }
    if (window_export(self->window) != 0) {
        raise_gate(self->owner, atomic_load(&self->window->lock.gate) | GATE_CLOSED);
        return -1;
    }
    if (PyBuffer_FillInfo(view, object, self->base, (Py_ssize_t)self->size, !self->writable, flags) == 0)
        return 0;
    window_unexport(self->window);
    return -1;
}

static void mmio_releasebuffer(PyObject *object, Py_buffer *view)
{
    (void)view;
    window_unexport(((struct mmio_object *)object)->window);
}

/* ---- construction ---- */

static struct mmio_object *mmio_make(struct window_object *owner, size_t place, size_t size, size_t num_spans, bool writable_)
{
    allocfunc alloc = (allocfunc)PyType_GetSlot(core_mmio_type, Py_tp_alloc);
    struct mmio_object *self = (struct mmio_object *)alloc(core_mmio_type, 0);

    if (self == NULL)
        return NULL;
    self->window = owner->window;
    self->owner = owner;
    Py_INCREF((PyObject *)owner);
    self->name = Py_NewRef(owner->name);
    self->base = (uint8_t *)(atomic_load(&owner->window->base) + place);
    self->size = size;
    self->writable = writable_;
    self->num_spans = 0;
    self->spans = calloc(num_spans == 0 ? 1 : num_spans, sizeof(*self->spans));
    if (self->spans == NULL) {
        Py_DECREF(self);
        PyErr_NoMemory();
        return NULL;
    }
    return self;
}

/* Add a part that is mapped; parts come sorted, and join when they abut. */
static bool add_span(struct mmio_object *self, size_t place, size_t start, size_t size)
{
    struct span *last = self->num_spans == 0 ? NULL : &self->spans[self->num_spans - 1];

    if (size == 0 || start > self->size || size > self->size - start ||
        (last != NULL && start < last->start + last->size)) {
        PyErr_SetString(core_errors.argument, "areas must be inside of the region, sorted, not empty, and not overlap");
        return false;
    }
    if (!window_mapped(self->window, place + start, size, self->writable ? PROT_READ | PROT_WRITE : PROT_READ)) {
        PyErr_Format(core_errors.argument, "the area of %zu bytes at %zu is not mapped in the window%s", size, start,
                     self->writable ? ", or not for writing" : "");
        return false;
    }
    if (last != NULL && start == last->start + last->size)
        last->size += size;
    else
        self->spans[self->num_spans++] = (struct span){start, size};
    return true;
}

/* What the checks of an access look at first. */
static void set_first(struct mmio_object *self)
{
    if (self->num_spans == 0)
        return;
    self->first = self->spans[0];
    trace_attach(self);
    mmio_set_fast(self);
}

void mmio_set_fast(struct mmio_object *self)
{
    bool fast = !trace_on && self->first.start == 0 && (uintptr_t)self->base % 8 == 0;
    size_t end = fast ? self->first.size & ~(size_t)7 : 0;

    /* other threads may be at it: they take one way or the other */
    __atomic_store_n(&self->fast_end, end, __ATOMIC_RELAXED);
    __atomic_store_n(&self->fast_write_end, self->writable ? end : 0, __ATOMIC_RELAXED);
}

static bool add_spans(struct mmio_object *self, size_t place, PyObject *areas)
{
    Py_ssize_t count = PyTuple_Size(areas);

    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *area = PyTuple_GetItem(areas, i);
        uint64_t start, size;

        if (!PyTuple_Check(area) || PyTuple_Size(area) != 2) {
            PyErr_Format(PyExc_TypeError, "an area is a tuple (offset, length), not %R", area);
            return false;
        }
        if (!core_unsigned(PyTuple_GetItem(area, 0), SIZE_MAX, "an area's offset", &start) ||
            !core_unsigned(PyTuple_GetItem(area, 1), SIZE_MAX, "an area's length", &size) ||
            !add_span(self, place, start, size))
            return false;
    }
    set_first(self);
    return true;
}

static PyObject *mmio_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"window", "place", "size", "areas", "writable", "name", NULL};
    PyObject *window, *place_, *size_, *areas_, *name = NULL;
    uint64_t place, size;
    int writable_ = 1;

    (void)type;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O!OOO|pU:Mmio", names, core_window_type, &window, &place_, &size_,
                                     &areas_, &writable_, &name) ||
        !core_unsigned(place_, SIZE_MAX, "place", &place) || !core_unsigned(size_, SIZE_MAX, "size", &size))
        return NULL;
    struct window_object *owner = (struct window_object *)window;
    size_t limit = atomic_load(&owner->window->size);
    uint32_t gate = atomic_load(&owner->window->lock.gate);

    if ((gate & (GATE_CLOSED | GATE_FORKED)) != 0) {
        raise_gate(owner, gate);
        return NULL;
    }
    if (place > limit || size > limit - place) {
        PyErr_Format(core_errors.bounds, "a region of %llu bytes at %llu does not fit into the window's %zu bytes",
                     (unsigned long long)size, (unsigned long long)place, limit);
        return NULL;
    }
    PyObject *areas = PySequence_Tuple(areas_);

    if (areas == NULL)
        return NULL;
    struct mmio_object *self = mmio_make(owner, place, size, (size_t)PyTuple_Size(areas), writable_ != 0);

    if (self != NULL && name != NULL) {
        Py_DECREF(self->name);
        self->name = Py_NewRef(name);
    }
    if (self != NULL && !add_spans(self, place, areas))
        Py_CLEAR(self);
    Py_DECREF(areas);
    return (PyObject *)self;
}

static PyObject *mmio_view(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    struct mmio_object *self = (struct mmio_object *)object;
    uint64_t offset, size;

    if (nargs != 2) {
        PyErr_Format(PyExc_TypeError, "view() takes an offset and a size (%zd arguments given)", nargs);
        return NULL;
    }
    if (!core_unsigned(args[0], SIZE_MAX, "offset", &offset) || !core_unsigned(args[1], SIZE_MAX, "size", &size) ||
        !mmio_check(self, offset, size, 1))
        return NULL;
    size_t place = (size_t)(self->base + offset - atomic_load(&self->window->base));
    struct mmio_object *part = mmio_make(self->owner, place, size, 1, self->writable);

    if (part == NULL)
        return NULL;
    part->base = self->base + offset; /* not by way of the window's base, which is gone once it is closed */
    part->spans[0] = (struct span){0, size};
    part->num_spans = 1;
    set_first(part);
    PyObject *view = PyMemoryView_FromObject((PyObject *)part);

    Py_DECREF(part);
    return view;
}

static void mmio_dealloc(PyObject *object)
{
    struct mmio_object *self = (struct mmio_object *)object;
    PyTypeObject *type = Py_TYPE(object);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);

    trace_detach(self);
    free(self->spans);
    Py_XDECREF(self->name);
    Py_XDECREF((PyObject *)self->owner);
    release(object);
    Py_DECREF(type);
}

static PyObject *mmio_get_size(PyObject *self, void *closure)
{
    (void)closure;
    return PyLong_FromSize_t(((struct mmio_object *)self)->size);
}

static PyObject *mmio_get_address(PyObject *self, void *closure)
{
    (void)closure;
    return PyLong_FromSize_t((size_t)((struct mmio_object *)self)->base);
}

static PyObject *mmio_get_writable(PyObject *self, void *closure)
{
    (void)closure;
    return PyBool_FromLong(((struct mmio_object *)self)->writable);
}

static PyObject *mmio_get_window(PyObject *self, void *closure)
{
    PyObject *owner = (PyObject *)((struct mmio_object *)self)->owner;

    (void)closure;
    Py_INCREF((PyObject *)owner);
    return owner;
}

static PyObject *mmio_get_areas(PyObject *object, void *closure)
{
    struct mmio_object *self = (struct mmio_object *)object;
    PyObject *areas = PyTuple_New((Py_ssize_t)self->num_spans);

    (void)closure;
    for (size_t i = 0; areas != NULL && i < self->num_spans; i++) {
        PyObject *area = Py_BuildValue("(nn)", (Py_ssize_t)self->spans[i].start, (Py_ssize_t)self->spans[i].size);

        if (area == NULL || PyTuple_SetItem(areas, (Py_ssize_t)i, area) != 0)
            Py_CLEAR(areas);
    }
    return areas;
}

static PyObject *mmio_repr(PyObject *object)
{
    struct mmio_object *self = (struct mmio_object *)object;

    return PyUnicode_FromFormat("<Mmio of %U, %zu bytes at %p%s>", self->owner->name, self->size, self->base,
                                self->writable ? "" : ", read-only");
}

/* ---- the type ---- */

#define READ_DOC(bits)                                                                                 \
    "read" #bits "($self, offset, /)\n--\n\n"                                                          \
    "Read the " #bits "-bit little-endian register at offset: one access of exactly that width.\n\n"   \
    "Args:\n    offset: bytes from the region's start, a multiple of the width.\n\n"                   \
    "Raises:\n    BoundsError, AlignmentError: the offset is wrong; the device was not touched.\n"     \
    "    ZappedError, MemoryDisabledError, DeviceGoneError: the memory is away, or went during the read.\n" \
    "    MemoryLockBusyError: a writer held the memory lock for a second without zapping.\n"          \
    "    ClosedError, ForkedError: the device was closed, or belongs to the parent process."
#define WRITE_DOC(bits)                                                                                \
    "write" #bits "($self, offset, value, /)\n--\n\n"                                                  \
    "Write the " #bits "-bit little-endian register at offset: one access of exactly that width.\n\n"  \
    "Args:\n    offset: bytes from the region's start, a multiple of the width.\n"                     \
    "    value: 0 to 2**" #bits " - 1.\n\n"                                                            \
    "Raises:\n    ArgumentError: the value does not fit, or the region is read-only.\n"                \
    "    Otherwise as read" #bits "."
#define ACCESSOR_METHODS(bits)                                                                         \
    {"read" #bits, mmio_read##bits, METH_O, READ_DOC(bits)},                                           \
    {"write" #bits, (PyCFunction)(void (*)(void))mmio_write##bits, METH_FASTCALL, WRITE_DOC(bits)}
#define FAST(function) (PyCFunction)(void (*)(void))(function)

static PyMethodDef mmio_methods[] = {
    ACCESSOR_METHODS(8),
    ACCESSOR_METHODS(16),
    ACCESSOR_METHODS(32),
    ACCESSOR_METHODS(64),
    {"access", (PyCFunction)(void (*)(void))mmio_access, METH_VARARGS | METH_KEYWORDS,
     "access($self, *, wait=None)\n--\n\n"
     "Return a context manager that holds one read section over several accesses: ``with mmio.access() as mmio:``.\n\n"
     "Sections nest. Don't wait inside of one: a reset waits for it to end.\n\n"
     "Args:\n    wait: seconds to wait for memory that is zapped; None fails at once.\n\n"
     "Raises:\n    As Window.acquire_read(), when it is entered."},
    {"read_block32", FAST(mmio_read_block32), METH_FASTCALL,
     "read_block32($self, offset, count, /)\n--\n\n"
     "Read count 32-bit registers from offset on into bytes (each register little-endian), in one read section.\n\n"
     "Raises as read32."},
    {"readinto", FAST(mmio_readinto), METH_FASTCALL,
     "readinto($self, offset, buffer, width=4, /)\n--\n\n"
     "Fill a writable buffer from offset on, by accesses of width bytes (1, 2, 4 or 8), in one read section.\n\n"
     "The GIL is released above 64 accesses. Returns the number of bytes.\n\n"
     "Raises:\n    AlignmentError: offset or the buffer's size is not a multiple of width.\n    Otherwise as read32."},
    {"write_block", FAST(mmio_write_block), METH_FASTCALL,
     "write_block($self, offset, data, width=4, /)\n--\n\n"
     "Write data (any buffer) from offset on, by accesses of width bytes (1, 2, 4 or 8), in one read section.\n\n"
     "The GIL is released above 64 accesses. Returns the number of bytes.\n\n"
     "Raises:\n    AlignmentError: offset or the data's size is not a multiple of width.\n    Otherwise as write32."},
    {"poll", FAST(mmio_poll), METH_VARARGS | METH_KEYWORDS,
     "poll($self, offset, width, mask, equals, timeout)\n--\n\n"
     "Read the register until value & mask == equals, and return the value.\n\n"
     "The memory lock is held for each look, not for the wait; the GIL is released while waiting.\n\n"
     "Args:\n    offset: bytes from the region's start, a multiple of width.\n    width: 1, 2, 4 or 8 bytes.\n"
     "    mask, equals: 0 to the largest value of the width; equals has no bit outside of mask.\n"
     "    timeout: seconds; 0 looks once.\n\n"
     "Raises:\n    DeadlineError: it did not come; the message has the last value.\n"
     "    LockOrderError: called inside of a read section, where waiting would hold up a reset.\n"
     "    Otherwise as read32: a zap ends the wait."},
    {"run", mmio_run, METH_O,
     "run($self, program, /)\n--\n\n"
     "Run a register program in one read section; return the values of its reads and polls, in order.\n\n"
     "Raises:\n    BoundsError, AlignmentError: a step is outside of the region; nothing was done.\n"
     "    DeadlineError: a poll expired: ``step`` is its index, ``results`` what was read before.\n"
     "    Otherwise as read32: the steps up to then were done, the rest met no device."},
    {"run_into", FAST(mmio_run_into), METH_FASTCALL,
     "run_into($self, program, buffer, /)\n--\n\n"
     "Run a register program and put its results into a writable buffer, 8 bytes each, native order.\n\n"
     "For long programs: no Python integers are made. Returns the number of results.\n\nRaises as run."},
    {"view", FAST(mmio_view), METH_FASTCALL,
     "view($self, offset, size, /)\n--\n\n"
     "Return a memoryview of size bytes at offset, format \"B\"; they must lie in one mapped area.\n\n"
     "A raw view is not guarded: while the memory is away it reads all-ones and its writes are lost. It stays\n"
     "valid, all-ones, after close(): the addresses are released with the last view."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef mmio_properties[] = {
    {"size", mmio_get_size, NULL, "Size of the region in bytes.", NULL},
    {"address", mmio_get_address, NULL, "Virtual address of offset 0; never changes.", NULL},
    {"writable", mmio_get_writable, NULL, "Whether the region may be written.", NULL},
    {"window", mmio_get_window, NULL, "The window that the region is mapped in.", NULL},
    {"areas", mmio_get_areas, NULL, "The parts that are mapped: tuple of (offset, length), sorted, none abutting.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(mmio_doc,
             "Mmio(window, place, size, areas, writable=True, name=None)\n--\n\n"
             "Access the registers of one region: guarded accessors, bulk copies, register programs, raw views.\n\n"
             "Each call is one read section of the window's memory lock; it raises if the memory is away, before\n"
             "and after the access. An accessor never waits while it has the GIL.\n\n"
             "Args:\n"
             "    window: where the region is mapped.\n"
             "    place: offset of the region in the window, bytes.\n"
             "    size: of the region, bytes.\n"
             "    areas: the parts that are mapped, (offset, length) in the region, sorted; the rest are holes.\n"
             "    writable: False refuses writes and makes views read-only.\n"
             "    name: of the region, for traces; by default the window's.\n\n"
             "Lifetime:\n    Keeps the window object alive; useless, but harmless, once that is closed.\n\n"
             "Locking:\n    Takes the memory lock for reading; may be used inside of acquire_read(), and by the\n"
             "    writer itself. Safe from any thread.");

static PyType_Slot mmio_slots[] = {
    {Py_tp_doc, (void *)mmio_doc},
    {Py_tp_new, mmio_new},
    {Py_tp_dealloc, mmio_dealloc},
    {Py_tp_repr, mmio_repr},
    {Py_tp_methods, mmio_methods},
    {Py_tp_getset, mmio_properties},
    {Py_bf_getbuffer, mmio_getbuffer},
    {Py_bf_releasebuffer, mmio_releasebuffer},
    {0, NULL},
};

static PyType_Spec mmio_spec = {
    .name = "vfio_user._mmio.Mmio",
    .basicsize = sizeof(struct mmio_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = mmio_slots,
};

bool core_mmio_setup(PyObject *module)
{
    core_mmio_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &mmio_spec, NULL);
    return core_mmio_type != NULL && PyModule_AddType(module, core_mmio_type) == 0;
}

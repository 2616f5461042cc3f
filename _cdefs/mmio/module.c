/* SPDX-License-Identifier: MIT */
/* The module vfio_user._mmio. */
#include "core.h"

#include "fault.h"
#include "io.h"

static PyObject *fence(PyObject *module, PyObject *ignored)
{
    (void)module, (void)ignored;
    io_fence();
    Py_RETURN_NONE;
}

static PyObject *install_handler(PyObject *module, PyObject *ignored)
{
    int result = fault_assert();

    (void)module, (void)ignored;
    if (result >= 0)
        return PyBool_FromLong(result != 0);
    raise_os(result, "install the fault handler (sigaction)", "");
    return NULL;
}

static PyObject *read_sections(PyObject *module, PyObject *ignored)
{
    (void)module, (void)ignored;
    return PyLong_FromUnsignedLong(lock_reader.sections);
}

static PyObject *stats(PyObject *module, PyObject *ignored)
{
    struct fault_stats s = fault_stats();

    (void)module, (void)ignored;
    return Py_BuildValue("{sKsKsKsKsKsK}", "faults", (unsigned long long)s.faults, "served", (unsigned long long)s.served,
                         "retried", (unsigned long long)s.retried, "chained", (unsigned long long)s.chained, "rezapped",
                         (unsigned long long)s.rezapped, "asserted", (unsigned long long)s.asserted);
}

static PyObject *set_handler_delay(PyObject *module, PyObject *argument)
{
    uint64_t microseconds;

    (void)module;
    if (!core_unsigned(argument, 1000000, "the delay", &microseconds))
        return NULL;
    fault_set_delay((uint32_t)microseconds);
    Py_RETURN_NONE;
}

static PyObject *set_ones_limit(PyObject *module, PyObject *argument)
{
    uint64_t limit;

    (void)module;
    if (!core_unsigned(argument, UINT32_MAX, "the limit", &limit))
        return NULL;
    fault_set_ones_limit((uint32_t)limit);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"zap_many", (PyCFunction)(void (*)(void))core_zap_many, METH_VARARGS | METH_KEYWORDS,
     "zap_many(windows, reason=0)\n--\n\n"
     "Zap windows whose memory locks this thread holds for writing; adjacent ones take one system call.\n\n"
     "Raises:\n    LockOrderError: a lock is not held.\n    ArgumentError: a window is in it twice.\n"
     "    VfioOSError: mmap failed (errno); windows before it in address order are zapped, the others are not."},
    {"fence", fence, METH_NOARGS,
     "fence()\n--\n\n"
     "Order accesses to memory that a device shares: all before it happen before all after it, as the device sees them.\n\n"
     "For rings whose entries are handed over by an index in memory. A register access needs none: writes to memory\n"
     "before a register write, and reads of memory after a register read, are in order by themselves."},
    {"install_handler", install_handler, METH_NOARGS,
     "install_handler()\n--\n\n"
     "Put the fault handler in front of whatever handles SIGSEGV and SIGBUS now; return whether it had to.\n\n"
     "Every open, zap and revive does this. Call it after something else took the signals (faulthandler.enable(),\n"
     "faulthandler.disable(), signal.signal()) while views are in use."},
    {"read_sections", read_sections, METH_NOARGS,
     "read_sections()\n--\n\nReturn in how many explicit read sections, of all windows, this thread is.\n\n"
     "For code that waits: waiting inside of one would hold up a reset."},
    {"stats", stats, METH_NOARGS,
     "stats()\n--\n\n"
     "Return the fault handler's counters: faults, served (ones were mapped), retried, chained (not ours), rezapped\n"
     "(windows emptied of too many mappings of ones), asserted (times it was put in front)."},
    {"_set_handler_delay", set_handler_delay, METH_O,
     "_set_handler_delay(microseconds, /)\n--\n\nTests only: widen the race between a fault and a revive."},
    {"_set_ones_limit", set_ones_limit, METH_O,
     "_set_ones_limit(limit, /)\n--\n\nTests only: mappings of ones in a window before it is emptied of them; 0 resets."},
    {NULL, NULL, 0, NULL},
};

static const struct {
    const char *name;
    long value;
} constants[] = {
    {"STATE_LIVE", WINDOW_LIVE},         {"STATE_ZAPPED", WINDOW_ZAPPED},     {"STATE_REVIVING", WINDOW_REVIVING},
    {"STATE_CLOSED", WINDOW_CLOSED},     {"STATE_FORKED", WINDOW_FORKED},     {"FLAG_NONE", FLAG_NONE},
    {"FLAG_TOUCHED", FLAG_TOUCHED},      {"FLAG_BUS_ERROR", FLAG_BUS_ERROR},  {"REASON_NONE", REASON_NONE},
    {"REASON_RESET", REASON_RESET},      {"REASON_DISABLED", REASON_DISABLED}, {"REASON_GONE", REASON_GONE},
    {"REASON_CLOSE", REASON_CLOSE},      {"REASON_FAILED", REASON_FAILED},
};

static int execute(PyObject *module)
{
    static bool loaded;

    /* windows, threads and signal handlers belong to the process: one interpreter has them */
    if (loaded) {
        PyErr_SetString(PyExc_ImportError, "vfio_user._mmio can be loaded once in a process, by one interpreter");
        return -1;
    }
    if (!core_raise_setup() || !core_window_setup(module) || !core_mmio_setup(module) || !core_program_setup(module) ||
        !core_proxy_setup(module) || !core_ledger_setup(module) || !core_access_setup(module) ||
        !core_ring_setup(module) || !core_trace_setup(module) ||
        !core_cell_setup(module))
        return -1;
    for (size_t i = 0; i < sizeof(constants) / sizeof(constants[0]); i++)
        if (PyModule_AddIntConstant(module, constants[i].name, constants[i].value) != 0)
            return -1;
    loaded = true;
    return 0;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, execute},
#if defined(Py_mod_gil)
    /* C state is guarded by atomics and its own locks, never by the GIL */
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

PyDoc_STRVAR(module_doc,
             "Device memory: windows, the memory lock, guarded register accessors, register programs, rings.\n\n"
             "Written in C by hand, because a call through cffi costs three times a register access. The classes are\n"
             "re-exported by vfio_user.memory, which adds the Python side.");

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "vfio_user._mmio",
    .m_doc = module_doc,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__mmio(void)
{
    return PyModuleDef_Init(&definition);
}

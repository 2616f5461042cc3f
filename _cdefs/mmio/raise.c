/* SPDX-License-Identifier: MIT */
/* Exceptions: what was wrong, which device, and what to do. The classes are those of vfio_user.errors. */
#include "core.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define MAX_HOLDERS 16
#define MAX_SECONDS 31536000.0 /* a year: still far from overflowing a deadline in ns */

struct errors core_errors;

static const struct {
    const char *name;
    PyObject **place;
} classes[] = {
    {"ArgumentError", &core_errors.argument},
    {"AlignmentError", &core_errors.alignment},
    {"BoundsError", &core_errors.bounds},
    {"ClosedError", &core_errors.closed},
    {"ForkedError", &core_errors.forked},
    {"ZappedError", &core_errors.zapped},
    {"MemoryDisabledError", &core_errors.disabled},
    {"DeviceGoneError", &core_errors.gone},
    {"LockOrderError", &core_errors.order},
    {"MemoryLockBusyError", &core_errors.busy},
    {"DeadlineError", &core_errors.deadline},
    {"VfioOSError", &core_errors.os},
};

bool core_raise_setup(void)
{
    PyObject *errors = PyImport_ImportModule("vfio_user.errors");
    bool good = errors != NULL;

    for (size_t i = 0; good && i < sizeof(classes) / sizeof(classes[0]); i++) {
        PyObject *class = PyObject_GetAttrString(errors, classes[i].name);

        *classes[i].place = class; /* for good: errors outlive every import of this module */
        good = class != NULL;
    }
    Py_XDECREF(errors);
    return good;
}

/* Raise class(message) with one attribute; takes over the reference to value. */
static bool raise_with(PyObject *class, PyObject *message, const char *attribute, PyObject *value)
{
    PyObject *error = NULL;

    if (message != NULL && value != NULL)
        error = PyObject_CallFunctionObjArgs(class, message, NULL);
    if (error != NULL && PyObject_SetAttrString(error, attribute, value) == 0)
        PyErr_SetObject(class, error);
    Py_XDECREF(error);
    Py_XDECREF(message);
    Py_XDECREF(value);
    return false;
}

static bool raise_zapped(struct window_object *owner, uint32_t gate)
{
    /* the reason of the last zap, which is none of an access that met a bus error in live memory */
    int32_t reason = (gate & GATE_ZAPPED) != 0 ? atomic_load(&owner->window->reason) : REASON_NONE;
    PyObject *class = core_errors.zapped;
    const char *why = "it is being reset, is in low power, or is closing";

    if (reason == REASON_GONE) {
        class = core_errors.gone;
        why = "the device does not answer any more";
    } else if (reason == REASON_DISABLED) {
        class = core_errors.disabled;
        why = "memory decoding is off, or the device is in a low-power state";
    } else if (reason == REASON_RESET) {
        why = "the device is being reset";
    } else if (reason == REASON_FAILED) {
        why = "the last reset of the device failed, and it needs another one";
    } else if ((gate & GATE_FLAGGED) != 0) {
        class = core_errors.disabled;
        why = "the kernel refused an access (SIGBUS): memory decoding is off, low power, or the device is gone";
    }
    PyObject *message = PyUnicode_FromFormat(
        "the memory of %U is not there: %s; wait for it with wait_live(timeout), or revive it", owner->name, why);

    return raise_with(class, message, "reason", PyLong_FromLong(reason));
}

bool raise_gate(struct window_object *owner, uint32_t gate)
{
    if ((gate & GATE_FORKED) != 0)
        PyErr_Format(core_errors.forked,
                     "%U was opened by the parent process: only that process may drive it; open it anew",
                     owner->name);
    else if ((gate & GATE_CLOSED) != 0)
        PyErr_Format(core_errors.closed, "%U is closed", owner->name);
    else
        raise_zapped(owner, gate);
    return false;
}

/* "thread 17 (reading for at least 0.020 s), ..." and the list of (tid, seconds). */
static PyObject *describe_holders(struct window_object *owner, PyObject **list)
{
    struct lock_holder holders[MAX_HOLDERS];
    size_t count = lock_holders(&owner->window->lock, holders, MAX_HOLDERS);

    /* a writer that waits for readers has closed the gate already: it is not whom it waits for */
    if (count > 0 && holders[0].writer && holders[0].tid == lock_tid()) {
        count--;
        memmove(holders, holders + 1, (count < MAX_HOLDERS ? count : MAX_HOLDERS - 1) * sizeof(*holders));
    }
    PyObject *text = PyUnicode_FromString(count == 0 ? "whoever was in has just left" : "");

    *list = PyList_New(0);
    for (size_t i = 0; i < count && i < MAX_HOLDERS && text != NULL && *list != NULL; i++) {
        PyObject *held = PyFloat_FromDouble((double)holders[i].held_ns / 1e9);
        PyObject *item = held == NULL ? NULL : Py_BuildValue("(lO)", (long)holders[i].tid, held);
        PyObject *more = PyUnicode_FromFormat(
            "%U%sthread %ld %s, for at least %lld ms", text, i == 0 ? "" : "; ", (long)holders[i].tid,
            holders[i].writer ? "holds it for writing" : "is in a read section",
            (long long)(holders[i].held_ns / 1000000));
        bool good = item != NULL && more != NULL && PyList_Append(*list, item) == 0;

        Py_XDECREF(held);
        Py_XDECREF(item);
        Py_DECREF(text);
        text = more;
        if (!good)
            Py_CLEAR(*list);
    }
    if (text == NULL || *list == NULL) {
        Py_CLEAR(text);
        Py_CLEAR(*list);
    }
    return text;
}

bool raise_busy(struct window_object *owner, const char *doing)
{
    PyObject *list, *who = describe_holders(owner, &list);

    if (who == NULL)
        return false;
    PyObject *holders = PyList_AsTuple(list);
    PyObject *message = PyUnicode_FromFormat("the memory lock of %U is busy, can't %s in time: %U", owner->name, doing, who);

    Py_DECREF(who);
    Py_DECREF(list);
    return raise_with(core_errors.busy, message, "holders", holders);
}

bool raise_os(int error, const char *what, const char *hint)
{
    PyObject *instance = PyObject_CallFunction(core_errors.os, "iss", error < 0 ? -error : error, what, hint);

    if (instance != NULL)
        PyErr_SetObject(core_errors.os, instance);
    Py_XDECREF(instance);
    return false;
}

/* What lock_enter() and lock_acquire() report besides a closed gate. */
bool raise_wait(int error, struct window_object *owner)
{
    if (error == -ENOMEM)
        PyErr_NoMemory();
    else if (error == -EAGAIN)
        PyErr_Format(core_errors.busy, "more threads at once than the memory lock of %U has places for", owner->name);
    else
        raise_os(error, "enter the memory lock", "");
    return false;
}

struct hex core_hex(uint64_t value)
{
    struct hex hex;

    snprintf(hex.text, sizeof(hex.text), "0x%llx", (unsigned long long)value);
    return hex;
}

/* ---- arguments ---- */

bool core_deadline(PyObject *seconds, int64_t *deadline)
{
    double value = PyFloat_AsDouble(seconds);

    if (value == -1.0 && PyErr_Occurred()) {
        PyErr_Clear();
        PyErr_Format(PyExc_TypeError, "a timeout is a number of seconds (every wait has a deadline), not %R", seconds);
        return false;
    }
    if (!(value >= 0.0 && value <= MAX_SECONDS)) {
        PyErr_Format(core_errors.argument, "a timeout is from 0 to 31536000 seconds, not %R", seconds);
        return false;
    }
    *deadline = lock_now() + (int64_t)(value * 1e9);
    return true;
}

bool core_unsigned(PyObject *value, uint64_t max, const char *what, uint64_t *out)
{
    PyObject *index = PyNumber_Index(value);

    if (index == NULL) {
        PyErr_Clear();
        PyErr_Format(PyExc_TypeError, "%s must be an integer, not %R", what, value);
        return false;
    }
    *out = PyLong_AsUnsignedLongLong(index);
    Py_DECREF(index);
    if ((*out == (uint64_t)-1 && PyErr_Occurred()) || *out > max) {
        PyErr_Clear();
        PyErr_Format(core_errors.argument, "%s must be from 0 to %llu, not %R", what, (unsigned long long)max, value);
        return false;
    }
    return true;
}

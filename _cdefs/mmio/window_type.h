/* SPDX-License-Identifier: MIT */
/* The methods of Window: window_lock.c has those of the memory lock, window_memory.c those of the mappings. */
#ifndef VFIO_USER_WINDOW_TYPE_H
#define VFIO_USER_WINDOW_TYPE_H

#include "core.h"

PyObject *method_map(PyObject *self, PyObject *args, PyObject *keywords);
PyObject *method_zap(PyObject *self, PyObject *args, PyObject *keywords);
PyObject *method_revive(PyObject *self, PyObject *args, PyObject *keywords);
PyObject *method_close(PyObject *self, PyObject *args, PyObject *keywords);
PyObject *method_lock_write(PyObject *self, PyObject *timeout);
PyObject *method_try_lock_write(PyObject *self, PyObject *ignored);
PyObject *method_unlock_write(PyObject *self, PyObject *ignored);
PyObject *method_write_locked(PyObject *self, PyObject *ignored);
PyObject *method_holders(PyObject *self, PyObject *ignored);
PyObject *method_acquire_read(PyObject *self, PyObject *args, PyObject *keywords);
PyObject *method_release_read(PyObject *self, PyObject *ignored);
PyObject *method_read_depth(PyObject *self, PyObject *ignored);
PyObject *method_wait_live(PyObject *self, PyObject *timeout);

static inline struct window *native(PyObject *self)
{
    return ((struct window_object *)self)->window;
}

#endif

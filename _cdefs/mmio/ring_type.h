/* SPDX-License-Identifier: MIT */
/* The type RingPair: ring_type.c makes it, ring_submit.c and ring_reap.c have what drivers call all the time. */
#ifndef VFIO_USER_RING_TYPE_H
#define VFIO_USER_RING_TYPE_H

#include "core.h"
#include "ring.h"

#include <pythread.h>

struct pair_object {
    PyObject_HEAD
    struct ring ring;
    Py_buffer submissions, completions; /* obj is NULL where there is none */
    PyObject *bells;                    /* an Mmio, or something with its write32() */
    size_t tail_bell, head_bell;
    _Atomic uint32_t lock; /* guards the ring, and orders doorbells; taken before the memory lock */
    _Atomic bool running;
    bool lazy; /* the device is told of taken completions only when it could run out of room */
};

/* The lock, waited for without the GIL. */
void pair_lock(struct pair_object *self);
/* Let go of it, and of what commands have kept alive that are over. */
void pair_unlock(struct pair_object *self);

/* Ring a doorbell, and tell the device which completions were taken in; the caller has the lock. */
bool pair_bell(struct pair_object *self, size_t offset, uint32_t value);
bool pair_acknowledge(struct pair_object *self);

PyObject *pair_submit(PyObject *self, PyObject *const *args, Py_ssize_t nargs);
PyObject *pair_submit_for(PyObject *self, PyObject *const *args, Py_ssize_t nargs);
PyObject *pair_scan(PyObject *self, PyObject *ignored);
PyObject *pair_take(PyObject *self, PyObject *ignored);
PyObject *pair_reap(PyObject *self, PyObject *const *args, Py_ssize_t nargs);
PyObject *pair_each(PyObject *self, PyObject *const *args, Py_ssize_t nargs);
PyObject *pair_spin(PyObject *self, PyObject *const *args, Py_ssize_t nargs);

/* ring_life.c */
PyObject *pair_start(PyObject *self, PyObject *ignored);
PyObject *pair_stop(PyObject *self, PyObject *ignored);
PyObject *pair_reset(PyObject *self, PyObject *ignored);
PyObject *pair_end_all(PyObject *self, PyObject *completion);
PyObject *pair_flying(PyObject *self, PyObject *ignored);
PyObject *pair_take_stray(PyObject *self, PyObject *ignored);
extern PyGetSetDef pair_properties[];

#endif

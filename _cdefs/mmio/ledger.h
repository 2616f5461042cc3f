/* SPDX-License-Identifier: MIT */
/*
 * What a ledger and its parts know of each other: entries, which are linked in the order of their addition, and the
 * ranges that are made of them.
 */
#ifndef VFIO_USER_LEDGER_H
#define VFIO_USER_LEDGER_H

#include "core.h"

struct ledger_object;

struct entry_object {
    PyObject_HEAD
    _Atomic(struct ledger_object *) ledger; /* that it is in; NULL before and after */
    struct entry_object *previous, *next;
    PyObject *keepalive;
    uint64_t iova, size;
    char suspended, claimed;
};

struct ledger_object {
    PyObject_HEAD
    struct entry_object *first, *last; /* owned, in the order of their addition */
    uint64_t num_bytes;
    Py_ssize_t count, num_suspended;
};

struct extent {
    uint64_t first, last; /* inclusive: the end of the highest does not fit 64 bits */
};

extern PyTypeObject *core_entry_type;

static inline struct ledger_object *ledger_of(struct entry_object *entry)
{
    return atomic_load_explicit(&entry->ledger, memory_order_relaxed);
}

static inline void set_ledger(struct entry_object *entry, struct ledger_object *ledger)
{
    atomic_store_explicit(&entry->ledger, ledger, memory_order_relaxed);
}

/* Make the type of entries; false with an exception set. */
bool core_entry_setup(PyObject *module);

/* Put ranges in order of address. */
void core_extents_order(struct extent *extents, size_t count);

/* Leave out what is there twice, and join what abuts if wanted; gives the number of runs, and of different extents. */
size_t core_extents_join(struct extent *extents, size_t count, bool merge, Py_ssize_t *different);

/* A list of addresses and sizes; NULL with an exception set. */
PyObject *core_extents_list(const struct extent *extents, size_t count);

#endif

/* SPDX-License-Identifier: MIT */
/*
 * Threads as the memory lock knows them. A thread gets an index when it first takes any lock, the lowest that is free,
 * and with it a place in every lock: its slot. When it ends, what it held is let go and the index is free again.
 */
#ifndef VFIO_USER_READER_H
#define VFIO_USER_READER_H

#include "lock.h"

/* Give this thread an index, if it has none: 0, -EAGAIN (more threads than there is room for), -ENOMEM. */
int reader_assign(void);

/* This thread's slot in a lock, made if need be; 0 or as reader_assign(). */
int reader_slot(struct memory_lock *lock, struct reader_slot **slot);

/* Call visit for each slot that may be in use, until it returns other than 0, which is returned. */
typedef int (*slot_visit)(struct memory_lock *lock, struct reader_slot *slot, uint32_t index, void *context);
int reader_each_slot(struct memory_lock *lock, slot_visit visit, void *context);

/* The thread that has an index; 0 when none has. */
pid_t reader_tid(uint32_t index);

#endif

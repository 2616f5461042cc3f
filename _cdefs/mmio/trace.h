/* SPDX-License-Identifier: MIT */
/*
 * Tracing of register accesses: a ring of records, filled by accessors and drained by Python.
 *
 * While nobody traces it costs nothing: an accessor's fast path has no test for it. Starting a trace closes the fast
 * path of every accessor there is (fast_end = 0, which the bounds check finds), and the slow path records.
 */
#ifndef VFIO_USER_TRACE_H
#define VFIO_USER_TRACE_H

#include "core.h"

enum trace_kind { TRACE_READ, TRACE_WRITE, TRACE_POLL, TRACE_BLOCK_READ, TRACE_BLOCK_WRITE, TRACE_PROGRAM };

extern bool trace_on; /* changes with the GIL held; a look without it may be late */

/* Every accessor is known from here on, until it is forgotten; call it before the accessor can be used. */
void trace_attach(struct mmio_object *self);
void trace_detach(struct mmio_object *self);

void trace_record(struct mmio_object *self, enum trace_kind kind, int64_t begin, size_t offset, size_t width, uint64_t value);

/* When an access that may be recorded begins: 0 when nobody traces. */
static inline int64_t trace_begin(void)
{
    return unlikely(trace_on) ? lock_now() : 0;
}

/* The access is over. For a block the value is its size, for a program the number of its steps. */
static inline void trace_end(struct mmio_object *self, enum trace_kind kind, int64_t begin, size_t offset, size_t width,
                             uint64_t value)
{
    if (unlikely(begin != 0))
        trace_record(self, kind, begin, offset, width, value);
}

#endif

/* SPDX-License-Identifier: MIT */
/* A register program, packed: program.c makes it, run.c runs it. */
#ifndef VFIO_USER_PROGRAM_H
#define VFIO_USER_PROGRAM_H

#include "core.h"

enum kind { READS, WRITES, POLL };

struct run {
    uint64_t offset;
    int64_t stride; /* from one access to the next, bytes */
    size_t count;
    size_t operand; /* index of the first value (WRITES), or of mask, equals, timeout in us (POLL) */
    size_t step;    /* index of the first step, as the caller counts */
    uint8_t kind, width;
};

struct program_object {
    PyObject_HEAD
    struct run *runs;
    uint64_t *operands;
    size_t num_runs, num_operands, num_steps, num_results;
    bool writes, polls;
};

#endif

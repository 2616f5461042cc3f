/* SPDX-License-Identifier: MIT */
/* Sleep on a word and wake its sleepers, within one process. Usable in a signal handler. */
#ifndef VFIO_USER_FUTEX_H
#define VFIO_USER_FUTEX_H

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/*
 * Sleep while *word is value, at most until the deadline (CLOCK_MONOTONIC, ns): 0, -ETIMEDOUT, -EINTR.
 * 0 may be spurious: look at the word again.
 */
static inline int futex_wait(_Atomic uint32_t *word, uint32_t value, int64_t deadline)
{
    struct timespec t = {.tv_sec = deadline / 1000000000, .tv_nsec = deadline % 1000000000};

    if (syscall(SYS_futex, word, FUTEX_WAIT_BITSET_PRIVATE, value, &t, NULL, FUTEX_BITSET_MATCH_ANY) == 0)
        return 0;
    return errno == EAGAIN ? 0 : -errno;
}

static inline void futex_wake_all(_Atomic uint32_t *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

#endif

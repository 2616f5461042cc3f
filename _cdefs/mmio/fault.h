/* SPDX-License-Identifier: MIT */
/*
 * The fault handler: SIGSEGV and SIGBUS inside our windows; everything else goes to whoever was there before.
 *
 * A touch of a zapped window finds all-ones, as from a device that fell off its bus; so does a touch of
 * live memory that the kernel answers with SIGBUS (memory decoding off, low power, device gone). The
 * window is flagged. Ones come from a private mapping of a file of ones and never from a memset: between
 * the decision and the store the window may be revived, and the store would go to the device's registers.
 *
 * Limits: a thread that blocks these signals is killed by the kernel. A raw write to a zapped page is kept
 * in a private copy of that page until the next zap. System calls on zapped memory get EFAULT.
 */
#ifndef VFIO_USER_FAULT_H
#define VFIO_USER_FAULT_H

#include <stdint.h>

/*
 * Put our handler in front, for both signals, unless it is there already; whoever was there is called for
 * faults that are not ours. 0, 1 when something changed, or a negative errno. Called at every open, zap and revive,
 * because others (faulthandler's disable, signal.signal) remove it without a word.
 */
int fault_assert(void);

/* In the child of a fork: no other thread is left that could hold the mutex. */
void fault_fork_child(void);

struct fault_stats {
    uint64_t faults;   /* signals that came to our handler */
    uint64_t served;   /* of these: ones were mapped */
    uint64_t retried;  /* of these: the window was being revived, or the first fault in a live one */
    uint64_t chained;  /* of these: not ours */
    uint64_t rezapped; /* windows emptied of ones because there were too many mappings */
    uint64_t asserted; /* times that our handler was put in front */
};

struct fault_stats fault_stats(void);

/* Tests only: sleep between the decision and the deed, to force the race with a revive open. */
void fault_set_delay(uint32_t microseconds);
/* Tests only: how many mappings of ones a window may have before it is emptied of them. */
void fault_set_ones_limit(uint32_t limit);

#endif

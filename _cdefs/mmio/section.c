/* SPDX-License-Identifier: MIT */
/* Entering a read section when it is not free at once, and what the caller is told when it can't be. */
#include "core.h"

#include <errno.h>

/* How long a reader waits for one writer that does not zap, and for writers one after another. */
#define PATIENCE_NS INT64_C(1000000000)
#define PATIENCE_TOTAL_NS INT64_C(10000000000)

struct patience {
    int64_t writer; /* when the writer that is waited for closed the gate */
    int64_t until, end;
};

/* Sleep while the gate is as it was, without the GIL, at most for a slice; false when a signal handler raised. */
static bool sleep_slice(struct memory_lock *lock, uint32_t gate, int64_t deadline)
{
    int64_t slice = lock_now() + CORE_SLICE_NS;

    Py_BEGIN_ALLOW_THREADS
    lock_gate_sleep(lock, gate, slice < deadline ? slice : deadline);
    Py_END_ALLOW_THREADS
    return PyErr_CheckSignals() == 0;
}

/* A writer is in and has not zapped (yet): wait for it, with patience. */
static bool wait_for_writer(struct window_object *owner, uint32_t gate, struct patience *patience, const char *doing)
{
    struct memory_lock *lock = &owner->window->lock;
    int64_t now = lock_now(), writer = atomic_load(&lock->closed_at);

    if (patience->end == 0)
        patience->end = now + PATIENCE_TOTAL_NS;
    if (patience->writer != writer) {
        patience->writer = writer;
        patience->until = now + PATIENCE_NS;
    }
    if (now >= patience->until || now >= patience->end)
        return raise_busy(owner, doing);
    return sleep_slice(lock, gate, patience->until);
}

bool section_enter_slow(struct mmio_object *self, struct reader_slot **slot)
{
    struct memory_lock *lock = &self->window->lock;
    struct patience patience = {0};

    for (;;) {
        int result = lock_enter(lock, slot);
        uint32_t gate = atomic_load(&lock->gate);

        if (result == LOCK_ENTERED)
            return true;
        if ((gate & GATE_MEMORY) != 0)
            return raise_gate(self->owner, gate);
        if (result == LOCK_NESTED)
            return true;
        if (result != -EBUSY)
            return raise_wait(result, self->owner);
        if (gate != 0 && !wait_for_writer(self->owner, gate, &patience, "read or write a register"))
            return false;
    }
}

bool raise_waiting(void)
{
    PyErr_SetString(core_errors.order, "this thread is inside of a read section: leave access() before waiting, a reset "
                                       "would have to wait too");
    return false;
}

bool core_wait_open(struct window_object *self, int64_t deadline)
{
    struct memory_lock *lock = &self->window->lock;

    for (;;) {
        uint32_t gate = atomic_load(&lock->gate);

        if (gate == 0 || (gate == GATE_WRITER && lock_write_owned(lock)))
            return true;
        if ((gate & (GATE_CLOSED | GATE_FORKED)) != 0)
            return raise_gate(self, gate);
        if (lock_reader.sections != 0)
            return raise_waiting();
        if (lock_now() >= deadline) {
            PyErr_Format(core_errors.deadline, "the memory of %U did not come back in time%s", self->name,
                         gate == GATE_WRITER ? ": a writer holds the memory lock" : "");
            return false;
        }
        if (!sleep_slice(lock, gate, deadline))
            return false;
    }
}

bool core_acquire(struct window_object *self, bool wait, int64_t deadline)
{
    struct memory_lock *lock = &self->window->lock;
    struct patience patience = {0};

    for (;;) {
        uint32_t gate = atomic_load(&lock->gate);

        if ((gate & GATE_MEMORY) != 0) {
            if (!wait)
                return raise_gate(self, gate);
            if (!core_wait_open(self, deadline))
                return false;
        }
        int result = lock_acquire(lock);

        if (result == 0)
            return true;
        if (result != -EBUSY)
            return raise_wait(result, self);
        gate = atomic_load(&lock->gate);
        if (wait ? !core_wait_open(self, deadline)
                 : gate == GATE_WRITER && !wait_for_writer(self, gate, &patience, "enter a read section"))
            return false;
    }
}

bool core_release(struct window_object *self)
{
    if (lock_release(&self->window->lock) == 0)
        return true;
    PyErr_Format(core_errors.order,
                 "this thread is in no read section of %U: a section is left by the thread that entered it", self->name);
    return false;
}

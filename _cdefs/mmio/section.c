/* SPDX-License-Identifier: MIT */
/* Entering a read section when it is not free at once, and what the caller is told when it can't be. */
#include "core.h"

#include <errno.h>

/* A writer is in and has not zapped (yet): wait for it, without the GIL, with patience. */
static bool wait_for_writer(struct mmio_object *self, uint32_t gate, int64_t *deadline)
{
    int64_t now = lock_now(), slice = now + CORE_SLICE_NS;

    if (*deadline == 0)
        *deadline = now + CORE_PATIENCE_NS;
    if (now >= *deadline)
        return raise_busy(self->owner, "read or write a register");
    Py_BEGIN_ALLOW_THREADS
    lock_gate_sleep(&self->window->lock, gate, slice < *deadline ? slice : *deadline);
    Py_END_ALLOW_THREADS
    return PyErr_CheckSignals() == 0;
}

bool section_enter_slow(struct mmio_object *self, struct reader_slot **slot, int result)
{
    struct memory_lock *lock = &self->window->lock;
    int64_t deadline = 0;

    for (;;) {
        uint32_t gate = atomic_load(&lock->gate);

        if (result == LOCK_ENTERED)
            return true;
        if ((gate & GATE_MEMORY) != 0)
            return raise_gate(self->owner, gate);
        if (result == LOCK_NESTED)
            return true;
        if (result != -EBUSY)
            return raise_wait(result, self->owner);
        if (gate != 0 && !wait_for_writer(self, gate, &deadline))
            return false;
        result = lock_enter(lock, slot);
    }
}

"""Device memory: windows of addresses, and the lock that says who may touch them.

A device has one `Window` and with it one memory lock. Readers are register accesses; the writer is whoever takes the
memory away: reset, COMMAND.MEM=0, low power, close.

Lock order, in which a thread may take locks while it has others::

    dev_set lock  ->  memory locks (of several devices: all at once, by a LockSet)  ->  address-space lock

Take the write lock first and zap after; revive first and release after. Never wait (for an interrupt, a queue, another
lock) inside of a read section: a reset would have to wait too. What could deadlock is refused with a `LockOrderError`:
a reader that wants to write, a writer that wants to wait for a second device, and inside of a section the waits that
this package knows of (for an interrupt, a register, memory that is away, another reset). It can't see a `time.sleep`.
"""

from __future__ import annotations

from vfio_user._mmio import Mmio, Program, RingPair, Window, fence, install_handler, read_sections, zap_many
from vfio_user.memory.lock import LockSet, MemoryLock, require_no_section
from vfio_user.memory.window import Layout, WindowFlag, WindowState, ZapReason, layout

__all__ = [
    "Layout",
    "LockSet",
    "MemoryLock",
    "Mmio",
    "Program",
    "RingPair",
    "Window",
    "WindowFlag",
    "WindowState",
    "ZapReason",
    "fence",
    "install_handler",
    "layout",
    "read_sections",
    "require_no_section",
    "zap_many",
]

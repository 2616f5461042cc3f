"""The two rings of a queue pair, as they lie in memory that the controller shares (NVMe Base 2.0, 3.3.1).

A ring knows its memory, its position and, for completions, the phase; it knows nothing of doorbells, threads or who
waits. Its owner holds the queue's lock.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from vfio_user.drivers.nvme.commands import CQE_SIZE, SQE_SIZE, Completion
from vfio_user.errors import BoundsError

if TYPE_CHECKING:
    from vfio_user.drivers.nvme.commands import SubmissionEntry

__all__ = ["CompletionRing", "SubmissionRing"]

_SQE = struct.Struct("<BBHIIIQQQ6I")
_ID = struct.Struct("<H")
_PRPS = struct.Struct("<QQ")
_DWORD = struct.Struct("<I")
_ID_OFFSET = 2
_PRP_OFFSET = 24
_STATUS_OFFSET = 12
_PHASE_BIT = 1 << 16  # of dword 3


class SubmissionRing:
    """Where commands are written for the controller to fetch.

    Lifetime:
        Borrows its memory; whoever allocated that frees it once the controller no longer knows the queue.
    Locking:
        The caller holds the queue's lock.
    """

    def __init__(self, memory: memoryview, entries: int) -> None:
        """Lay a ring of ``entries`` entries over writable memory of at least 64 bytes for each."""
        self._memory = memory[: entries * SQE_SIZE]
        self.entries = entries
        """Number of entries; one of them always stays empty."""
        self.tail = 0
        """Where the next command goes: the value for the tail doorbell."""

    def put(self, entry: SubmissionEntry, command_id: int, prp1: int, prp2: int) -> None:
        """Write a command at the tail and move on. The controller learns of it by the doorbell only.

        Raises:
            BoundsError: a field does not fit its width.
        """
        start = self.tail * SQE_SIZE
        try:
            _SQE.pack_into(self._memory, start, *entry)
        except struct.error as exc:
            raise BoundsError(f"{entry}: {exc}") from exc
        _ID.pack_into(self._memory, start + _ID_OFFSET, command_id)
        _PRPS.pack_into(self._memory, start + _PRP_OFFSET, prp1, prp2)
        self.tail = self.tail + 1 if self.tail + 1 < self.entries else 0

    def rewind(self, tail: int) -> None:
        """Take back what was put since the tail was ``tail``; only before the doorbell rang."""
        self.tail = tail

    def reset(self) -> None:
        """Start over, as for a queue that is created again."""
        self._memory[:] = bytes(len(self._memory))
        self.tail = 0


class CompletionRing:
    """Where the controller writes what became of commands.

    Lifetime:
        Borrows its memory, as `SubmissionRing` does.
    Locking:
        The caller holds the queue's lock.
    """

    def __init__(self, memory: memoryview, entries: int) -> None:
        """Lay a ring of ``entries`` entries over writable memory of at least 16 bytes for each."""
        self._memory = memory[: entries * CQE_SIZE]
        self.entries = entries
        """Number of entries."""
        self.head = 0
        """The next entry to look at: the value for the head doorbell."""
        self._phase = _PHASE_BIT

    def take(self) -> Completion | None:
        """Return the next completion and move on; `None` when the controller has not written it yet."""
        start = self.head * CQE_SIZE
        # The controller writes the dword with the phase last. It is looked at alone first and the entry read
        # after, so that no half of an older entry can be taken for a part of this one.
        if _DWORD.unpack_from(self._memory, start + _STATUS_OFFSET)[0] & _PHASE_BIT != self._phase:
            return None
        completion = Completion.unpack_from(self._memory, start)
        self.head += 1
        if self.head == self.entries:
            self.head = 0
            self._phase ^= _PHASE_BIT
        return completion

    def reset(self) -> None:
        """Start over, as for a queue that is created again: zeroed, so that no entry has the first phase."""
        self._memory[:] = bytes(len(self._memory))
        self.head = 0
        self._phase = _PHASE_BIT

"""Which commands of a queue are in flight: each identifier is given out once, and taken back once."""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

from vfio_user.errors import BoundsError

__all__ = ["CommandTable"]

_ID_BITS = 16


class _Identified(Protocol):
    command_id: int


T = TypeVar("T", bound=_Identified)


class CommandTable(Generic[T]):
    """The commands in flight, by identifier.

    An identifier is a slot number with a generation above it, which changes whenever the slot is given out again.
    So a completion that comes twice, or for a command of long ago, is not taken for another command's. The
    identifier 0xffff, which the Error Information log uses for "none", never occurs.

    Lifetime:
        As long as its queue.
    Locking:
        The caller holds the queue's lock.
    """

    def __init__(self, capacity: int) -> None:
        """Make room for ``capacity`` commands in flight, 1 to 65535."""
        if not 1 <= capacity < 1 << _ID_BITS:
            raise BoundsError(f"{capacity} commands in flight: identifiers allow 1 to {(1 << _ID_BITS) - 1}")
        # One slot number stays unused, so that no identifier has all bits set.
        self._shift = capacity.bit_length()
        self._mask = (1 << self._shift) - 1
        self._generations = (1 << _ID_BITS - self._shift) - 1
        self._next_ids = list(range(capacity))
        self._commands: list[T | None] = [None] * capacity
        self._free = list(range(capacity - 1, -1, -1))

    @property
    def capacity(self) -> int:
        """Most commands in flight."""
        return len(self._commands)

    @property
    def num_free(self) -> int:
        """Number of commands that can still be added."""
        return len(self._free)

    @property
    def num_in_flight(self) -> int:
        """Number of commands that were added and not taken back."""
        return len(self._commands) - len(self._free)

    def peek(self) -> tuple[int, int] | None:
        """Tell the slot and the identifier that the next command gets; `None` when all are in flight."""
        return (self._free[-1], self._next_ids[self._free[-1]]) if self._free else None

    def add(self, command: T) -> None:
        """Note a command, which carries the identifier that `peek` told."""
        slot = self._free.pop()
        self._commands[slot] = command
        generation = (self._next_ids[slot] >> self._shift) + 1 & self._generations
        self._next_ids[slot] = generation << self._shift | slot

    def take(self, command_id: int) -> T | None:
        """Take a command back by its identifier; `None` when no such command is in flight."""
        slot = command_id & self._mask
        command = self._commands[slot] if slot < len(self._commands) else None
        if command is None or command.command_id != command_id:
            return None
        self._commands[slot] = None
        self._free.append(slot)
        return command

    def take_all(self) -> list[T]:
        """Take back everything that is in flight."""
        found = [command for command in self._commands if command is not None]
        for command in found:
            self.take(command.command_id)
        return found

"""The device's side of a split virtqueue, written from the specification (virtio 1.2, 2.7), for tests."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Protocol

from vfio_user import DmaSlice, Iova
from vfio_user.drivers.virtio import QueueLayout

__all__ = ["BASE", "Chain", "DeviceQueue", "Memory", "Reach"]

BASE = 0x1_0000_0000
"""IOVA of the first byte of a `Memory`."""
_NEXT, _WRITE, _INDIRECT = 1, 2, 4


class Reach(Protocol):
    """What the device reaches of memory."""

    def at(self, iova: int, size: int) -> memoryview:
        """Give what is there."""


class Memory:
    """Bytes that driver and device share, handed out in pieces."""

    def __init__(self, size: int = 1 << 20) -> None:
        self.bytes = memoryview(bytearray(size))
        self._used = 0

    def take(self, size: int) -> DmaSlice:
        """Hand out a piece, aligned to 4096."""
        begin = self._used
        self._used += -(-size // 4096) * 4096
        assert self._used <= len(self.bytes)
        return DmaSlice(self.bytes[begin : begin + size], Iova(BASE + begin))

    def at(self, iova: int, size: int) -> memoryview:
        """Give what the device reaches there."""
        offset = iova - BASE
        assert 0 <= offset <= len(self.bytes) - size, f"IOVA {iova:#x}, {size} bytes: not mapped"
        return self.bytes[offset : offset + size]


@dataclass
class Chain:
    """A buffer that the device has fetched."""

    head: int
    readable: list[memoryview]
    writable: list[memoryview]

    @property
    def data(self) -> bytes:
        return b"".join(bytes(part) for part in self.readable)

    def fill(self, data: bytes) -> int:
        """Write to the writable segments; give the number of bytes."""
        rest = data
        for part in self.writable:
            part[: len(rest)] = rest[: len(part)]
            rest = rest[len(part) :]
        assert not rest, "more data than the driver gave room for"
        return len(data)


class DeviceQueue:
    """What a device knows of a queue: addresses and size, and how far it has come."""

    def __init__(self, memory: Reach, size: int, descriptors: int, available: int, used: int) -> None:
        self.memory, self.size = memory, size
        self._descriptors, self._available, self._used = descriptors, available, used
        self._fetched = self._returned = 0
        self.event_index = False

    @classmethod
    def of(cls, memory: Memory, area: DmaSlice, size: int) -> DeviceQueue:
        layout = QueueLayout(size)
        places = (area.iova + at for at in (layout.descriptors, layout.available, layout.used))
        return cls(memory, size, *places)

    def _get(self, iova: int, form: str) -> int:
        value: int = struct.unpack(form, self.memory.at(iova, struct.calcsize(form)))[0]
        return value

    def _put(self, iova: int, form: str, *values: int) -> None:
        self.memory.at(iova, struct.calcsize(form))[:] = struct.pack(form, *values)

    @property
    def num_available(self) -> int:
        return (self._get(self._available + 2, "<H") - self._fetched) & 0xFFFF

    def fetch(self) -> Chain | None:
        """Take the next available buffer."""
        if not self.num_available:
            return None
        head = self._get(self._available + 4 + 2 * (self._fetched % self.size), "<H")
        self._fetched = (self._fetched + 1) & 0xFFFF
        chain = Chain(head, [], [])
        self._walk(chain, self._descriptors, head, self.size, indirect=False)
        return chain

    def _walk(self, chain: Chain, table: int, at: int, entries: int, *, indirect: bool) -> None:
        for _ in range(entries):
            assert at < entries
            iova, length, flags, following = struct.unpack("<QIHH", self.memory.at(table + 16 * at, 16))
            if flags & _INDIRECT:
                assert not indirect
                assert not flags & (_NEXT | _WRITE)
                assert length % 16 == 0
                self._walk(chain, iova, 0, length // 16, indirect=True)
                return
            assert flags & _WRITE or not chain.writable, "readable segments come first"
            (chain.writable if flags & _WRITE else chain.readable).append(self.memory.at(iova, length))
            if not flags & _NEXT:
                return
            at = following
        raise AssertionError("a chain without an end")

    def give_back(self, head: int, written: int, *, index: int | None = None) -> bool:
        """Put a buffer into the used ring; tell whether the driver wants an interrupt for it."""
        self._put(self._used + 4 + 8 * (self._returned % self.size), "<II", head, written)
        old, self._returned = self._returned, (self._returned + 1) & 0xFFFF
        self._put(self._used + 2, "<H", self._returned if index is None else index)
        if self.event_index:
            event = self._get(self._available + 4 + 2 * self.size, "<H")
            return (self._returned - event - 1) & 0xFFFF < (self._returned - old) & 0xFFFF
        return not self._get(self._available, "<H") & 1

    def want_notification(self, wanted: bool) -> None:
        """Say whether the driver is to notify of the next buffer."""
        if self.event_index:
            event = self._fetched if wanted else (self._fetched - 1) & 0xFFFF
            self._put(self._used + 4 + 8 * self.size, "<H", event)
        else:
            self._put(self._used, "<H", 0 if wanted else 1)

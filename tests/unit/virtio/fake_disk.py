"""A virtio block device for the fake kernel: registers in a file, and a queue that answers when a test says so."""

from __future__ import annotations

import ctypes
import os
import struct

from tests.unit.fake_device import CONFIG, MSIX, FakeDevice
from tests.unit.virtio.model import Chain, DeviceQueue
from vfio_user import PciDevice

__all__ = ["COMMON", "CONFIGURATION", "NOTIFY", "QUEUE_SIZE", "STATUS", "FakeDisk", "Space", "capability", "finish"]

BAR = 4
COMMON, CONFIGURATION, NOTIFY = 0x0000, 0x2000, 0x3000
STATUS = COMMON + 0x14
#: The register reads the same for both halves: INDIRECT_DESC, EVENT_IDX, and for the upper one VERSION_1 and
#: ACCESS_PLATFORM.
FEATURES = 0x3000_0003
QUEUE_SIZE = 8


class Space:
    """The device's way to memory: the mappings of an address space."""

    def __init__(self, pci: PciDevice) -> None:
        self._pci = pci

    def at(self, iova: int, size: int) -> memoryview:
        for mapping in self._pci.address_space.mappings:
            if mapping.iova <= iova and iova + size <= mapping.iova + mapping.size and mapping.vaddr is not None:
                address = mapping.vaddr + iova - mapping.iova
                return memoryview((ctypes.c_char * size).from_address(address)).cast("B")
        raise AssertionError(f"IOVA {iova:#x}, {size} bytes: not mapped")


def capability(following: int, kind: int, bar: int, offset: int, size: int, extra: bytes = b"") -> bytes:
    return struct.pack("<BBBBBBxxII", 0x09, following, 16 + len(extra), kind, bar, 5, offset, size) + extra


class FakeDisk:
    """The device: its PCI side for the fake kernel, and what it does with its queue."""

    def __init__(self, capacity: int = 1000, ids: tuple[int, int, int] = (0x1AF4, 0x1042, 0x010000)) -> None:
        self.fake = FakeDevice(ids=ids, bars={BAR: 0x4000})
        self.set_capabilities(
            capability(0x50, 1, BAR, COMMON, 0x38),
            capability(0x70, 2, BAR, NOTIFY, 0x1000, struct.pack("<I", 4)),
            capability(0x00, 4, BAR, CONFIGURATION, 0x100),
        )
        self.put(COMMON + 0x04, "<I", FEATURES)
        self.put(COMMON + 0x12, "<H", 1)
        self.put(COMMON + 0x18, "<H", QUEUE_SIZE)
        self.put(CONFIGURATION, "<QII", capacity, 4096, 4)

    def set_capabilities(self, *capabilities: bytes) -> None:
        self.fake.write(CONFIG, 0x06, b"\x10\x00")
        self.fake.write(CONFIG, 0x34, b"\x40")
        for offset, data in zip((0x40, 0x50, 0x70), capabilities, strict=True):
            self.fake.write(CONFIG, offset, data)

    def put(self, offset: int, form: str, *values: int) -> None:
        self.fake.write(BAR, offset, struct.pack(form, *values))

    def get(self, offset: int, form: str) -> int:
        value: int = struct.unpack(form, self.fake.read(BAR, offset, struct.calcsize(form)))[0]
        return value

    def queue(self, pci: PciDevice) -> DeviceQueue:
        """Look at the queue that the driver has named."""
        addresses = [self.get(COMMON + 0x20 + 8 * n, "<Q") for n in range(3)]
        queue = DeviceQueue(Space(pci), self.get(COMMON + 0x18, "<H"), *addresses)
        queue.event_index = True
        return queue

    def interrupt(self, vector: int = 1) -> None:
        os.eventfd_write(self.fake.eventfds[MSIX, vector], 1)


def finish(queue: DeviceQueue, chain: Chain, status: int, written: int | None = None) -> None:
    """Complete a request with a status; what it reads is zeros."""
    chain.writable[-1][0] = status
    size = sum(len(part) for part in chain.writable)
    queue.give_back(chain.head, size if written is None else written)

"""A PCI device for the fake kernel: a sparse memory file holds its regions, so they can be read, written and mapped."""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING

from vfio_user._uapi import ffi, lib
from vfio_user.kernel.ioctl import requests

if TYPE_CHECKING:
    from vfio_user._uapi import CData

CONFIG = int(lib.VFIO_PCI_CONFIG_REGION_INDEX)
READ_WRITE = int(lib.VFIO_REGION_INFO_FLAG_READ | lib.VFIO_REGION_INFO_FLAG_WRITE)
MAPPABLE = READ_WRITE | int(lib.VFIO_REGION_INFO_FLAG_MMAP)
EVENTFD = int(lib.VFIO_IRQ_INFO_EVENTFD)
FIXED = EVENTFD | int(lib.VFIO_IRQ_INFO_NORESIZE)
LEVEL = EVENTFD | int(lib.VFIO_IRQ_INFO_MASKABLE | lib.VFIO_IRQ_INFO_AUTOMASKED)
DECODING = 0b11
INTX, MSI, MSIX, ERR, REQ = range(5)


def header(ids: tuple[int, int, int], size: int = 4096) -> bytearray:
    """Make a configuration space with ids and no capability; decoding is on, as after the kernel's open."""
    vendor, device, code = ids
    space = bytearray(size)
    struct.pack_into("<HHHHI", space, 0, vendor, device, DECODING, 0, code << 8)
    return space


class FakeDevice:
    """Answer the requests that go to a device's file."""

    def __init__(
        self,
        *,
        ids: tuple[int, int, int] = (0x1234, 0x11E8, 0x00FF00),
        bars: dict[int, int] | None = None,
    ) -> None:
        self.regions = {index: (size, MAPPABLE) for index, size in (bars or {0: 0x1000}).items()}
        self.regions[CONFIG] = (4096, READ_WRITE)
        self.capabilities: dict[int, bytes] = {}
        """By region, what follows ``struct vfio_region_info``."""
        self.irqs = {INTX: (1, LEVEL), MSI: (4, FIXED), MSIX: (8, EVENTFD), REQ: (1, FIXED)}
        """Count and flags by index; the kernel refuses those that are missing."""
        self.flags = int(lib.VFIO_DEVICE_FLAGS_PCI | lib.VFIO_DEVICE_FLAGS_RESET)
        self.num_regions, self.num_irqs = 9, 5
        self.file = os.memfd_create("fake-device")
        os.ftruncate(self.file, self.num_regions << 40)
        self.write(CONFIG, 0, header(ids))
        self.set_irqs: list[tuple[int, int, int, int, bytes]] = []
        """Index, flags, start, count and data of each ``VFIO_DEVICE_SET_IRQS``."""
        self.eventfds: dict[tuple[int, int], int] = {}
        self.resets = 0

    def write(self, index: int, offset: int, data: bytes | bytearray) -> None:
        """Write as the device itself."""
        os.pwrite(self.file, data, (index << 40) + offset)

    def read(self, index: int, offset: int, size: int) -> bytes:
        """Read as the device itself."""
        return os.pread(self.file, size, (index << 40) + offset)

    def open(self) -> int:
        """Open its file once more."""
        return os.open(f"/proc/self/fd/{self.file}", os.O_RDWR | os.O_CLOEXEC)

    def close(self) -> None:
        """Take the device out of the machine."""
        os.close(self.file)

    def ioctl(self, number: int, pointer: CData) -> int:
        """Answer one request."""
        if number == requests.VFIO_DEVICE_GET_INFO.number:
            reply = ffi.cast("struct vfio_device_info *", pointer)
            reply.flags, reply.num_regions, reply.num_irqs = self.flags, self.num_regions, self.num_irqs
            return 0
        if number == requests.VFIO_DEVICE_GET_REGION_INFO.number:
            return self._region_info(ffi.cast("struct vfio_region_info *", pointer))
        if number == requests.VFIO_DEVICE_GET_IRQ_INFO.number:
            answer = ffi.cast("struct vfio_irq_info *", pointer)
            if answer.index not in self.irqs:
                return -errno.EINVAL
            answer.count, answer.flags = self.irqs[answer.index]
            return 0
        if number == requests.VFIO_DEVICE_SET_IRQS.number:
            return self._set_irqs(ffi.cast("struct vfio_irq_set *", pointer))
        if number == requests.VFIO_DEVICE_RESET.number:
            self.resets += 1
            return 0
        return -errno.ENOTTY

    def _region_info(self, reply: CData) -> int:
        if reply.index not in self.regions:
            return -errno.EINVAL
        reply.size, reply.flags = self.regions[reply.index]
        reply.offset = reply.index << 40
        chain = self.capabilities.get(reply.index)
        if chain is not None:
            head = ffi.sizeof("struct vfio_region_info")
            reply.flags |= lib.VFIO_REGION_INFO_FLAG_CAPS
            if reply.argsz < head + len(chain):
                reply.cap_offset = 0
            else:
                reply.cap_offset = head
                ffi.memmove(ffi.cast("uint8_t *", reply) + head, chain, len(chain))
            reply.argsz = head + len(chain)
        return 0

    def _set_irqs(self, asked: CData) -> int:
        data = bytes(ffi.buffer(asked, asked.argsz))[20:]
        flags, index, start, count = int(asked.flags), int(asked.index), int(asked.start), int(asked.count)
        self.set_irqs.append((index, flags, start, count, data))
        trigger = flags & lib.VFIO_IRQ_SET_ACTION_TRIGGER
        if flags & lib.VFIO_IRQ_SET_DATA_EVENTFD and trigger:
            for number, fd in enumerate(struct.unpack(f"={count}i", data), start):
                self.eventfds[index, number] = fd
        elif trigger and count:
            for number in range(start, start + count):
                os.eventfd_write(self.eventfds[index, number], 1)
        elif trigger:
            self.eventfds = {key: fd for key, fd in self.eventfds.items() if key[0] != index}
        return 0

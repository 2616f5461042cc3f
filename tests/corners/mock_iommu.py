"""The kernel's mock IOMMU (``CONFIG_IOMMUFD_TEST``): devices without hardware behind them, in an iommufd.

It has what no emulated IOMMU has. Numbers and layouts are those of ``drivers/iommu/iommufd/iommufd_test.h``.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from vfio_user._uapi import ffi
from vfio_user.iommu.iommufd import Ioas, Iommufd, IommufdObject
from vfio_user.kernel.ioctl import Request, ioctl

#: What the mock's own kinds of things are called.
HW_INFO, DATA, VIOMMU, VEVENTQ, HW_QUEUE, INVALIDATE = (
    *(0xFEEDBEEF, 0xDEAD, 0xDEADBEEF, 0xBEEFBEEF, 0xDEADBEEF),
    0xDEADBEEF,
)
REGISTER, CACHED = 0xDEADBEEF, 0xBADDAD
APERTURE = 1 << 24
NO_DIRTY = 1
_COMMAND = Request("IOMMU_TEST_CMD", 0x3BA0)
_SIZE, _UNION = 72, 16


class Op(enum.IntEnum):
    """What can be asked of the mock."""

    REPLACE = 10
    DEVICE = 12
    DIRTY = 13
    CHECK_IOTLB = 14
    PAGE_FAULT = 15
    CHECK_CACHE = 16
    EVENT = 17


def ask(iommufd: Iommufd, operation: Op, number: int, payload: bytes) -> bytes:
    """Make a request of the mock, and give the payload as the kernel left it."""
    head = struct.pack("=IIII", _SIZE, operation, number, 0)
    buffer = bytearray((head + payload).ljust(_SIZE, b"\0"))
    ioctl(iommufd.fileno(), _COMMAND, ffi.from_buffer(buffer), device="the mock IOMMU")
    return bytes(buffer[_UNION:])


class MockDevice:
    """A device of the mock, attached to an address space; stands for a `BoundDevice` where page tables are moved."""

    closed = False

    def __init__(self, ioas: Ioas, *, flags: int = 0) -> None:
        self.ioas = ioas
        self.iommufd = ioas.iommufd
        reply = ask(self.iommufd, Op.DEVICE, ioas.id, struct.pack("=IIII", 0, 0, 0, flags))
        number, self.hwpt_id, self.device_id = struct.unpack_from("=III", reply)
        self.object = IommufdObject(self.iommufd, number)

    def attach_pt(self, target: IommufdObject) -> None:
        """Let it go over to other page tables."""
        ask(self.iommufd, Op.REPLACE, self.object.id, struct.pack("=I", target.id))

    def fault(self, address: int, group: int, permission: int) -> None:
        """Meet a page that is not there."""
        ask(self.iommufd, Op.PAGE_FAULT, 0, struct.pack("=IIIIQ", self.device_id, 0, group, permission, address))

    def event(self) -> None:
        """Have its virtual IOMMU report something."""
        ask(self.iommufd, Op.EVENT, 0, struct.pack("=I", self.device_id))

    def check_cache(self, index: int, value: int) -> None:
        """Fail when its cache has another value."""
        ask(self.iommufd, Op.CHECK_CACHE, self.device_id, struct.pack("=II", index, value))


def make_dirty(table: IommufdObject, iova: int, size: int, pages: Sequence[int], page_size: int) -> int:
    """Have a device write to pages, by their numbers; give how many that were."""
    number = sum(1 << page for page in pages)
    bits = ffi.new("uint8_t[]", number.to_bytes(size // page_size // 8 + 8, "little"))
    payload = struct.pack("=I4xQQQQQ", 0, iova, size, page_size, int(ffi.cast("uintptr_t", bits)), 0)
    reply = ask(table.iommufd, Op.DIRTY, table.id, payload)
    return int(struct.unpack_from("=Q", reply, 40)[0])


def check_iotlb(table: IommufdObject, index: int, value: int) -> None:
    """Fail when what nested page tables have cached has another value."""
    ask(table.iommufd, Op.CHECK_IOTLB, table.id, struct.pack("=II", index, value))


@dataclass(frozen=True)
class MockData:
    """Nested page tables: a value that their cache is filled with."""

    kind: ClassVar[int] = DATA
    value: int

    def pack(self) -> bytes:
        """Give the kernel's structure."""
        return struct.pack("=II", self.value, 0)


@dataclass(frozen=True)
class MockInvalidate:
    """Forget one value of the cache of nested page tables, or all."""

    kind: ClassVar[int] = INVALIDATE
    index: int = 0
    everything: bool = False

    def pack(self) -> bytes:
        """Give the kernel's structure."""
        return struct.pack("=II", self.everything, self.index)


@dataclass(frozen=True)
class MockDeviceInvalidate:
    """Forget one value of a device's cache, or all."""

    kind: ClassVar[int] = INVALIDATE
    virtual_id: int
    index: int = 0
    everything: bool = False

    def pack(self) -> bytes:
        """Give the kernel's structure."""
        return struct.pack("=III", self.everything, self.virtual_id, self.index)

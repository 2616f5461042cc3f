"""Page tables in the format of the hardware: with features, nested, tracking what devices write to."""

from __future__ import annotations

import errno
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from vfio_user._uapi import ffi, lib
from vfio_user.errors import VfioIoctlError
from vfio_user.iommu.bitmap import DirtyBitmap
from vfio_user.iommu.iommufd.command import address, command, send
from vfio_user.iommu.iommufd.object import IommufdObject
from vfio_user.kernel.ioctl import requests
from vfio_user.kernel.uapi import HwptAllocFlags, HwptDataType, InvalidateType

if TYPE_CHECKING:
    from vfio_user.iommu.iommufd.fd import Iommufd

__all__ = [
    "AmdGuest",
    "ArmSmmuv3Command",
    "ArmSmmuv3Ste",
    "Hwpt",
    "HwptData",
    "InvalidateEntry",
    "NestedHwpt",
    "VtdInvalidate",
    "VtdS1",
    "alloc_hwpt",
    "alloc_nested",
    "invalidate",
]


class HwptData(Protocol):
    """A description of page tables that the user manages."""

    kind: ClassVar[int]
    """Its `HwptDataType`, or the private number of a driver."""

    def pack(self) -> bytes:
        """Give the kernel's structure."""


class InvalidateEntry(Protocol):
    """One entry of an invalidation request."""

    kind: ClassVar[int]
    """Its `InvalidateType`, or the private number of a driver."""

    def pack(self) -> bytes:
        """Give the kernel's structure."""


@dataclass(frozen=True, slots=True)
class VtdS1:
    """First-stage tables of Intel VT-d (``struct iommu_hwpt_vtd_s1``)."""

    kind: ClassVar[int] = HwptDataType.VTD_S1
    address: int
    """Of the top table, in the address space that it is nested in."""
    width: int
    """Bits of an input address."""
    flags: int = 0
    """Bits of ``enum iommu_hwpt_vtd_s1_flags``."""

    def pack(self) -> bytes:
        """Give the kernel's structure."""
        return struct.pack("=QQI4x", self.flags, self.address, self.width)


@dataclass(frozen=True, slots=True)
class ArmSmmuv3Ste:
    """Stream table entry of an Arm SMMUv3 (``struct iommu_hwpt_arm_smmuv3``)."""

    kind: ClassVar[int] = HwptDataType.ARM_SMMUV3
    words: tuple[int, int]
    """Its first two 64-bit words."""

    def pack(self) -> bytes:
        """Give the kernel's structure."""
        return struct.pack("<QQ", *self.words)


@dataclass(frozen=True, slots=True)
class AmdGuest:
    """Device table entry of an AMD IOMMU (``struct iommu_hwpt_amd_guest``)."""

    kind: ClassVar[int] = HwptDataType.AMD_GUEST
    words: tuple[int, int, int, int]
    """Its 64-bit words."""

    def pack(self) -> bytes:
        """Give the kernel's structure."""
        return struct.pack("=4Q", *self.words)


@dataclass(frozen=True, slots=True)
class VtdInvalidate:
    """A range of a VT-d first stage to forget (``struct iommu_hwpt_vtd_s1_invalidate``)."""

    kind: ClassVar[int] = InvalidateType.VTD_S1
    address: int
    """First, a multiple of the page size; 0 with `ALL_PAGES` means everything."""
    num_pages: int
    """Pages of 4 KiB, or `ALL_PAGES`."""
    leaf_only: bool = False
    """Only entries of the last level changed."""

    ALL_PAGES: ClassVar[int] = (1 << 64) - 1

    def pack(self) -> bytes:
        """Give the kernel's structure."""
        flags = lib.IOMMU_VTD_INV_FLAGS_LEAF if self.leaf_only else 0
        return struct.pack("=QQI4x", self.address, self.num_pages, flags)


@dataclass(frozen=True, slots=True)
class ArmSmmuv3Command:
    """A command of an SMMUv3's queue (``struct iommu_viommu_arm_smmuv3_invalidate``), for a virtual IOMMU."""

    kind: ClassVar[int] = InvalidateType.ARM_SMMUV3
    words: tuple[int, int]
    """Its two 64-bit words."""

    def pack(self) -> bytes:
        """Give the kernel's structure."""
        return struct.pack("<QQ", *self.words)


class NestedHwpt(IommufdObject):
    """Page tables that the user manages, on top of an address space that the kernel manages.

    No emulated IOMMU can nest: it is exercised on the kernel's mock IOMMU only, with data of the mock's own.

    Lifetime:
        See `IommufdObject`.
    Locking:
        Each call is one request; the kernel orders them.
    """

    def invalidate(self, entries: Sequence[InvalidateEntry]) -> None:
        """Make the IOMMU forget what it has cached of these tables: ``IOMMU_HWPT_INVALIDATE``.

        Raises:
            VfioIoctlError: an entry was refused; the message says how many were done before.
        """
        invalidate(self.iommufd, self._live(), entries)


class Hwpt(IommufdObject):
    """Page tables of an address space that the kernel manages; devices are attached to them as to the address space.

    No emulated IOMMU has dirty tracking or nesting: both are exercised on the kernel's mock IOMMU only. Where the IOMMU
    lacks them `Ioas.alloc_hwpt` says so (EOPNOTSUPP, as `UnsupportedError`).

    Lifetime:
        See `IommufdObject`.
    Locking:
        Each call is one request; the kernel orders them.
    """

    def set_dirty_tracking(self, enable: bool) -> None:
        """Begin or stop to track what devices write to: ``IOMMU_HWPT_SET_DIRTY_TRACKING``.

        Raises:
            UnsupportedError: they were made without `HwptAllocFlags.DIRTY_TRACKING`.
        """
        hints = {errno.EOPNOTSUPP: "these page tables were made without HwptAllocFlags.DIRTY_TRACKING"}
        command(
            self.iommufd.fd,
            requests.IOMMU_HWPT_SET_DIRTY_TRACKING,
            "struct iommu_hwpt_set_dirty_tracking",
            hints=hints,
            flags=lib.IOMMU_HWPT_DIRTY_TRACKING_ENABLE if enable else 0,
            hwpt_id=self._live(),
        )

    def dirty_bitmap(self, iova: int, size: int, *, page_size: int = 4096, clear: bool = True) -> DirtyBitmap:
        """Read which pages of a range were written to since the last look: ``IOMMU_HWPT_GET_DIRTY_BITMAP``.

        An entry of the page tables is dirty as a whole, however large a page it maps; `Ioas.huge_pages` keeps them
        small.

        Args:
            iova: first of the range, which is mapped throughout: the kernel looks at nothing behind a gap, in silence.
            size: bytes of the range.
            page_size: bytes that a bit stands for; iova and size are multiples of it.
            clear: forget what is told; without, the next look tells it again.

        Raises:
            AlignmentError: iova or size is not such a multiple.
            VfioIoctlError: EINVAL on older kernels, while tracking is off.
        """
        bitmap = DirtyBitmap(iova, size, page_size)
        command(
            self.iommufd.fd,
            requests.IOMMU_HWPT_GET_DIRTY_BITMAP,
            "struct iommu_hwpt_get_dirty_bitmap",
            hwpt_id=self._live(),
            flags=0 if clear else lib.IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR,
            iova=iova,
            length=size,
            page_size=page_size,
            data=bitmap.address,
        )
        return bitmap

    def alloc_nested(self, device_id: int, data: HwptData, *, fault_id: int = 0) -> NestedHwpt:
        """Make page tables of the user's on top of these, which need `HwptAllocFlags.NEST_PARENT`.

        Raises:
            UnsupportedError: the IOMMU can't nest.
            VfioIoctlError: EINVAL when these can't be a parent, or the data make no sense.
        """
        return alloc_nested(self.iommufd, device_id, self._live(), data, fault_id=fault_id)


def alloc_hwpt(iommufd: Iommufd, device_id: int, parent: int, *, flags: HwptAllocFlags, fault_id: int = 0) -> Hwpt:
    """Ask ``IOMMU_HWPT_ALLOC`` for page tables that the kernel manages; see `Ioas.alloc_hwpt`."""
    return Hwpt(iommufd, _alloc(iommufd, device_id, parent, flags, fault_id, HwptDataType.NONE, b""))


def alloc_nested(iommufd: Iommufd, device_id: int, parent: int, data: HwptData, *, fault_id: int = 0) -> NestedHwpt:
    """Ask ``IOMMU_HWPT_ALLOC`` for page tables that the user manages."""
    flags = HwptAllocFlags(0)
    return NestedHwpt(iommufd, _alloc(iommufd, device_id, parent, flags, fault_id, data.kind, data.pack()))


def _alloc(
    iommufd: Iommufd, device_id: int, parent: int, flags: HwptAllocFlags, fault_id: int, kind: int, data: bytes
) -> int:
    if fault_id:
        flags |= HwptAllocFlags.FAULT_ID_VALID
    buffer = ffi.new("uint8_t[]", data)
    reply = command(
        iommufd.fd,
        requests.IOMMU_HWPT_ALLOC,
        "struct iommu_hwpt_alloc",
        hints={errno.EOPNOTSUPP: f"the device's IOMMU can't do {flags!r}, data type {kind}"},
        flags=flags,
        dev_id=device_id,
        pt_id=parent,
        data_type=kind,
        data_len=len(data),
        data_uptr=address(buffer) if data else 0,
        fault_id=fault_id,
    )
    return int(reply.out_hwpt_id)


def invalidate(iommufd: Iommufd, number: int, entries: Sequence[InvalidateEntry]) -> None:
    """Ask ``IOMMU_HWPT_INVALIDATE`` of nested page tables or a virtual IOMMU.

    Raises:
        VfioIoctlError: an entry was refused; the message says how many were done before.
    """
    if not entries:
        return
    packed = [each.pack() for each in entries]
    buffer = ffi.new("uint8_t[]", b"".join(packed))
    ctype = "struct iommu_hwpt_invalidate"
    argument = ffi.new(
        f"{ctype} *",
        {
            "size": ffi.sizeof(ctype),
            "hwpt_id": number,
            "data_uptr": address(buffer),
            "data_type": entries[0].kind,
            "entry_len": len(packed[0]),
            "entry_num": len(packed),
        },
    )
    try:
        send(iommufd.fd, requests.IOMMU_HWPT_INVALIDATE, argument)
    except VfioIoctlError as error:
        done = min(int(argument.entry_num), len(packed))
        hint = f"{done} of {len(packed)} entries were done"
        raise VfioIoctlError(error.errno or 0, error.request, error.device, hint) from error

"""What a device says of itself, its regions and its interrupts; capability chains are read as hostile bytes."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from vfio_user._uapi import ffi, lib
from vfio_user.errors import MalformedReplyError
from vfio_user.kernel.ioctl import capabilities, ioctl, query, requests
from vfio_user.kernel.uapi import DeviceFlags, IrqFlags, RegionFlags

__all__ = [
    "MAX_INDEXES",
    "MAX_VECTORS",
    "Capability",
    "DeviceInfo",
    "IrqInfo",
    "RegionInfo",
    "SparseArea",
    "device_info",
    "irq_info",
    "region_info",
]


#: No device has more regions, or kinds of interrupts; each is asked for by itself.
MAX_INDEXES = 1 << 10
#: No device has more vectors of one kind; MSI-X has 2048 at most.
MAX_VECTORS = 1 << 16


@dataclass(frozen=True, slots=True)
class Capability:
    """One element of a capability chain, not decoded."""

    identity: int
    """Its id, from the uAPI."""
    version: int
    """Its version."""
    payload: bytes
    """What follows its header, to the next capability or the end of the reply."""


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """Reply of ``VFIO_DEVICE_GET_INFO``."""

    flags: DeviceFlags
    """Bus and abilities of the device."""
    num_regions: int
    """Number of region indexes, unused ones included."""
    num_irqs: int
    """Number of interrupt indexes, unused ones included."""
    capabilities: tuple[Capability, ...] = field(default=(), repr=False)
    """Its capabilities, such as zPCI or PCI atomics."""


@dataclass(frozen=True, slots=True, order=True)
class SparseArea:
    """A part of a region that can be mapped."""

    offset: int
    """Where it begins in the region."""
    size: int
    """Its size in bytes."""

    @property
    def end(self) -> int:
        """First offset behind it."""
        return self.offset + self.size


@dataclass(frozen=True, slots=True)
class RegionInfo:
    """Reply of ``VFIO_DEVICE_GET_REGION_INFO``."""

    index: int
    """Index of the region."""
    flags: RegionFlags
    """Readable, writable, mappable."""
    size: int
    """Size in bytes; 0 when the device has no such region."""
    file_offset: int
    """Where it begins in the device's file."""
    sparse: tuple[SparseArea, ...] | None = None
    """The only parts that can be mapped; `None` when the kernel names none."""
    msix_mappable: bool = False
    """Whether the part that holds the MSI-X table can be mapped too."""
    type: tuple[int, int] | None = None
    """Type and subtype of a device-specific region."""
    capabilities: tuple[Capability, ...] = field(default=(), repr=False)
    """All capabilities, not decoded."""

    @property
    def mappable_areas(self) -> tuple[SparseArea, ...]:
        """The parts that can be mapped, ordered, as far as the kernel says."""
        if not self.flags & RegionFlags.MMAP or self.size == 0:
            return ()
        return self.sparse if self.sparse is not None else (SparseArea(0, self.size),)


@dataclass(frozen=True, slots=True)
class IrqInfo:
    """Reply of ``VFIO_DEVICE_GET_IRQ_INFO``."""

    index: int
    """Index of the interrupt kind."""
    flags: IrqFlags
    """Whether it takes eventfds, can be masked, masks itself, or keeps its size."""
    count: int
    """Number of vectors; 0 when the device has none of the kind."""


def device_info(fd: int, name: str) -> DeviceInfo:
    """Ask ``VFIO_DEVICE_GET_INFO``.

    Raises:
        MalformedReplyError: it has absurdly many regions or interrupts, or its capabilities don't follow their layout.
    """
    reply = query(fd, requests.VFIO_DEVICE_GET_INFO, "struct vfio_device_info", device=name)
    flags = DeviceFlags(reply.data.flags)
    if max(reply.data.num_regions, reply.data.num_irqs) > MAX_INDEXES:
        raise MalformedReplyError(
            f"{name} would have {reply.data.num_regions} regions and {reply.data.num_irqs} kinds of interrupts"
        )
    found: tuple[Capability, ...] = ()
    if flags & lib.VFIO_DEVICE_FLAGS_CAPS:
        found = tuple(_chain(reply.raw, reply.data.cap_offset))
    return DeviceInfo(flags, reply.data.num_regions, reply.data.num_irqs, found)


def region_info(fd: int, index: int, name: str) -> RegionInfo:
    """Ask ``VFIO_DEVICE_GET_REGION_INFO``.

    Raises:
        VfioIoctlError: EINVAL when the device has no such index.
        MalformedReplyError: a capability does not follow its own layout, or no file could be that long.
    """
    reply = query(fd, requests.VFIO_DEVICE_GET_REGION_INFO, "struct vfio_region_info", device=name, index=index)
    data = reply.data
    flags = RegionFlags(data.flags)
    if data.offset + data.size >= 1 << 63:
        raise MalformedReplyError(f"region {index} of {name} would be {data.size:#x} bytes at {data.offset:#x}")
    found: tuple[Capability, ...] = ()
    if flags & lib.VFIO_REGION_INFO_FLAG_CAPS and data.size:
        found = tuple(_chain(reply.raw, data.cap_offset))
    sparse = None
    kind = None
    for capability in found:
        if capability.identity == lib.VFIO_REGION_INFO_CAP_SPARSE_MMAP:
            sparse = _sparse_areas(capability.payload, data.size)
        elif capability.identity == lib.VFIO_REGION_INFO_CAP_TYPE:
            kind = _pair(capability.payload)
    msix = any(each.identity == lib.VFIO_REGION_INFO_CAP_MSIX_MAPPABLE for each in found)
    return RegionInfo(index, flags, data.size, data.offset, sparse, msix, kind, found)


def irq_info(fd: int, index: int, name: str) -> IrqInfo:
    """Ask ``VFIO_DEVICE_GET_IRQ_INFO``.

    Raises:
        VfioIoctlError: EINVAL when the device has no such index.
        MalformedReplyError: it has absurdly many vectors.
    """
    data = ffi.new("struct vfio_irq_info *", {"argsz": ffi.sizeof("struct vfio_irq_info"), "index": index})
    ioctl(fd, requests.VFIO_DEVICE_GET_IRQ_INFO, data, device=name)
    if data.count > MAX_VECTORS:
        raise MalformedReplyError(f"interrupt {index} of {name} would have {data.count} vectors")
    return IrqInfo(index, IrqFlags(data.flags), data.count)


def _chain(raw: bytes, first: int) -> Iterator[Capability]:
    found = list(capabilities(raw, first))
    ends = sorted([offset for _, _, offset in found] + [len(raw)])
    for identity, version, offset in found:
        end = next(each for each in ends if each > offset)
        yield Capability(identity, version, raw[offset + 8 : end])


def _pair(payload: bytes) -> tuple[int, int]:
    if len(payload) < 8:
        raise MalformedReplyError(f"the type capability of a region has {len(payload)} bytes, not 8")
    first, second = struct.unpack_from("=II", payload)
    return (first, second)


def _sparse_areas(payload: bytes, region_size: int) -> tuple[SparseArea, ...]:
    if len(payload) < 8:
        raise MalformedReplyError(f"the sparse-mmap capability has {len(payload)} bytes, not 8 at least")
    (count,) = struct.unpack_from("=I", payload)
    if 8 + count * 16 > len(payload):
        raise MalformedReplyError(f"{count} sparse areas do not fit a capability of {len(payload)} bytes")
    areas = sorted(SparseArea(*pair) for pair in struct.iter_unpack("=QQ", payload[8 : 8 + count * 16]))
    end = 0
    for area in areas:
        if area.offset < end or area.end > region_size:
            raise MalformedReplyError(f"sparse area {area} overlaps another, or leaves its region of {region_size:#x}")
        end = area.end
    return tuple(area for area in areas if area.size)

"""What the kernel tells of a PCI device beyond its configuration space: zPCI (s390), and PCIe atomic operations.

Atomic operations are not exercised on a device: no emulated root port completes them by itself.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vfio_user._uapi import ffi, lib
from vfio_user.errors import MalformedReplyError
from vfio_user.kernel.uapi import AtomicCompletion, DeviceCapability

if TYPE_CHECKING:
    from vfio_user._uapi import CData
    from vfio_user.device.info import Capability

__all__ = ["Zpci", "ZpciGroup", "read_atomics", "read_zpci"]

_HEADER = 8


@dataclass(frozen=True, slots=True)
class ZpciGroup:
    """What the functions of a zPCI group share (``VFIO_DEVICE_INFO_CAP_ZPCI_GROUP``)."""

    address_mask: int
    """DMA address space mask."""
    msi_address: int
    """Where message-signalled interrupts are written to."""
    refresh: bool
    """Whether the hypervisor has to be told of changed translations."""
    measurement_interval: int
    """Update interval of the function measurement block, in milliseconds."""
    num_interrupts: int
    """Largest number of interrupts."""
    store_size: int
    """Largest store block, in bytes."""
    interpreted_store_size: int
    """The same for interpreted stores; 0 when the kernel does not tell."""
    version: int
    """Supported PCI version."""


@dataclass(frozen=True, slots=True)
class Zpci:
    """A zPCI function (``VFIO_DEVICE_INFO_CAP_ZPCI_*``)."""

    start_dma: int
    """First IOVA that it can use."""
    end_dma: int
    """Last one."""
    channel: int
    """Physical channel id."""
    virtual_number: int
    """Number of the virtual function; 0 for a physical one."""
    measurement_length: int
    """Length of the function measurement block, in bytes."""
    function_type: int
    """Type, as the platform counts."""
    group_id: int
    """Which group it is of."""
    handle: int
    """Function handle; 0 when the kernel does not tell."""
    group: ZpciGroup | None
    """What its group shares; `None` when the kernel does not tell."""
    utility: str
    """Utility string, which is EBCDIC in the reply."""
    path: bytes
    """Internal path of the function, one byte for each segment."""


def read_atomics(capabilities: Iterable[Capability]) -> AtomicCompletion:
    """Read which widths of PCIe atomic operations the root completes; none where the kernel does not tell.

    Raises:
        MalformedReplyError: the capability is too short.
    """
    for each in capabilities:
        if each.identity == DeviceCapability.PCI_ATOMIC_COMP:
            return AtomicCompletion(_as(each, "struct vfio_device_info_cap_pci_atomic_comp").flags)
    return AtomicCompletion(0)


def read_zpci(capabilities: Iterable[Capability]) -> Zpci | None:
    """Read what the kernel tells of a zPCI function; `None` for others.

    Raises:
        MalformedReplyError: a capability is too short for its layout, or for the length that it names, or its window of
            IOVAs ends before it begins.
    """
    found = {each.identity: each for each in capabilities}
    base = found.get(DeviceCapability.ZPCI_BASE)
    if base is None:
        return None
    data = _as(base, "struct vfio_device_info_cap_zpci_base")
    if data.start_dma > data.end_dma:
        raise MalformedReplyError(f"a zPCI function reaches IOVAs {data.start_dma:#x} to {data.end_dma:#x}: none")
    group, utility = found.get(DeviceCapability.ZPCI_GROUP), found.get(DeviceCapability.ZPCI_UTIL)
    path = found.get(DeviceCapability.ZPCI_PFIP)
    return Zpci(
        int(data.start_dma),
        int(data.end_dma),
        int(data.pchid),
        int(data.vfn),
        int(data.fmb_length),
        int(data.pft),
        int(data.gid),
        int(data.fh),
        None if group is None else _group(group),
        "" if utility is None else _counted(utility).decode("cp037").strip(" \0"),
        b"" if path is None else _counted(path),
    )


def _group(capability: Capability) -> ZpciGroup:
    data = _as(capability, "struct vfio_device_info_cap_zpci_group")
    return ZpciGroup(
        int(data.dasm),
        int(data.msi_addr),
        bool(data.flags & lib.VFIO_DEVICE_INFO_ZPCI_FLAG_REFRESH),
        int(data.mui),
        int(data.noi),
        int(data.maxstbl),
        int(data.imaxstbl),
        int(data.version),
    )


def _as(capability: Capability, ctype: str) -> CData:
    """Give a capability as its structure. Version 1 lacks the last members of some: those read as 0."""
    size, payload = ffi.sizeof(ctype), capability.payload
    least = size if capability.version != 1 else _FIRST.get(ctype, size)
    if _HEADER + len(payload) < least:
        raise MalformedReplyError(f"a capability of {_HEADER + len(payload)} bytes can't be {ctype}, {least} bytes")
    usable = payload[: (size if capability.version != 1 else least) - _HEADER]
    raw = bytes(_HEADER) + usable
    return ffi.from_buffer(f"{ctype} *", bytearray(raw.ljust(size, b"\0")))


def _counted(capability: Capability) -> bytes:
    payload = capability.payload
    size = int.from_bytes(payload[:4], sys.byteorder) if len(payload) >= 4 else -1
    if not 0 <= size <= len(payload) - 4:
        raise MalformedReplyError(f"capability {capability.identity} names {size} bytes and has {len(payload)}")
    return payload[4 : 4 + size]


#: Length of version 1 of the structures that have grown.
_FIRST = {
    "struct vfio_device_info_cap_zpci_base": int(ffi.offsetof("struct vfio_device_info_cap_zpci_base", "fh")),
    "struct vfio_device_info_cap_zpci_group": int(ffi.offsetof("struct vfio_device_info_cap_zpci_group", "imaxstbl")),
}

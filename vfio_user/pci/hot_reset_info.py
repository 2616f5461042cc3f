"""What a hot reset would affect, as the kernel says: ``VFIO_DEVICE_GET_PCI_HOT_RESET_INFO``."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from vfio_user._uapi import ffi, lib
from vfio_user.addresses import PciAddress
from vfio_user.errors import ArgumentError, MalformedReplyError, UnsupportedError, VfioIoctlError
from vfio_user.kernel.ioctl import ioctl, query, requests

__all__ = ["AffectedFunction", "HotResetInfo", "hot_reset", "hot_reset_info", "parse"]

_HEAD = struct.Struct("=III")
_ENTRY = struct.Struct("=IHBB")
_USUAL = 8  # functions that a slot has at most


@dataclass(frozen=True, slots=True)
class AffectedFunction:
    """One function that a hot reset affects."""

    address: PciAddress
    """Where it sits."""
    group: int | None
    """Its IOMMU group; `None` in the form with device ids."""
    dev_id: int | None
    """Its id in the iommufd of the device that was asked; `None` in the form with groups, and for devices that have
    none there."""
    owned: bool | None
    """Whether that iommufd owns it; `None` in the form with groups, where having the group open decides."""


@dataclass(frozen=True, slots=True)
class HotResetInfo:
    """Reply of ``VFIO_DEVICE_GET_PCI_HOT_RESET_INFO``."""

    by_dev_id: bool
    """Ownership goes by the iommufd that the device was opened through, and a reset takes no group files."""
    owned: bool
    """In the form with device ids: the iommufd owns everything that is affected."""
    functions: tuple[AffectedFunction, ...]
    """All functions that are affected, the device itself among them, ordered by address."""

    @property
    def groups(self) -> tuple[int, ...]:
        """The groups of all affected functions, ascending; empty in the form with device ids."""
        return tuple(sorted({each.group for each in self.functions if each.group is not None}))


def hot_reset_info(fd: int, name: str) -> HotResetInfo:
    """Ask a device what resets with it: ``VFIO_DEVICE_GET_PCI_HOT_RESET_INFO``.

    Args:
        fd: the device's file.
        name: the device, for messages.

    Raises:
        UnsupportedError: neither its slot nor its bus can be reset (ENODEV): it sits on a root bus, or the platform
            forbids it. Also for devices that are not real PCI functions (ENOTTY).
        MalformedReplyError: the reply does not follow its own layout.
    """
    try:
        reply = query(
            fd,
            requests.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO,
            "struct vfio_pci_hot_reset_info",
            device=name,
            room=_USUAL * _ENTRY.size,
            needed=lambda data: _HEAD.size + int(data.count) * _ENTRY.size,
        )
    except VfioIoctlError as error:
        if error.errno not in (errno.ENODEV, errno.ENOTTY):
            raise
        raise UnsupportedError(
            f"{name} can't be hot-reset: no bridge above it can reset its slot or bus (it sits on a root bus, or the "
            "platform forbids it); reset() may reset the function alone"
        ) from error
    return parse(reply.raw)


def parse(raw: bytes) -> HotResetInfo:
    """Read a reply.

    Raises:
        MalformedReplyError: it is too short for what it says that it holds, or names a function twice.
    """
    if len(raw) < _HEAD.size:
        raise MalformedReplyError(f"a hot-reset reply of {len(raw)} bytes has no room for its head")
    _, flags, count = _HEAD.unpack_from(raw)
    if _HEAD.size + count * _ENTRY.size > len(raw):
        raise MalformedReplyError(f"{count} functions do not fit a hot-reset reply of {len(raw)} bytes")
    by_dev_id = bool(flags & lib.VFIO_PCI_HOT_RESET_FLAG_DEV_ID)
    entries = _ENTRY.iter_unpack(raw[_HEAD.size : _HEAD.size + count * _ENTRY.size])
    functions = tuple(sorted((_function(by_dev_id, *entry) for entry in entries), key=lambda each: each.address))
    if len({each.address for each in functions}) != len(functions):
        raise MalformedReplyError("a hot-reset reply names a function twice")
    owned = by_dev_id and bool(flags & lib.VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED)
    return HotResetInfo(by_dev_id, owned, functions)


def _function(by_dev_id: bool, number: int, segment: int, bus: int, devfn: int) -> AffectedFunction:
    address = PciAddress(segment, bus, devfn >> 3, devfn & 7)
    if not by_dev_id:  # the same word means another thing then: it is read only when the flag says what
        return AffectedFunction(address, number, None, None)
    has_id = number not in (lib.VFIO_PCI_DEVID_OWNED, lib.VFIO_PCI_DEVID_NOT_OWNED)
    return AffectedFunction(address, None, number if has_id else None, number != lib.VFIO_PCI_DEVID_NOT_OWNED)


def hot_reset(fd: int, group_fds: Iterable[int], name: str) -> None:
    """Reset the slot or bus of a device: ``VFIO_DEVICE_PCI_HOT_RESET``.

    Args:
        fd: the device's file.
        group_fds: files of all affected groups, each once; none for a device that was opened through iommufd.
        name: the device, for messages.

    Raises:
        ArgumentError: a group's file was given twice.
        VfioIoctlError: EINVAL when an affected device is not owned or not bound to VFIO; EBUSY and EAGAIN when
            somebody uses one at this moment; ENODEV without a way to reset; ENOTTY when it was tried and failed.
    """
    fds = list(group_fds)
    if len(set(fds)) != len(fds):
        raise ArgumentError("a group's file was given twice")
    body = struct.pack(f"={len(fds)}i", *fds)
    argument = bytearray(_HEAD.pack(_HEAD.size + len(body), 0, len(fds)) + body)
    ioctl(fd, requests.VFIO_DEVICE_PCI_HOT_RESET, ffi.from_buffer(argument), device=name)

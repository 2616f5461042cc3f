"""Queues that iommufd reports through: I/O page faults, and events of virtual IOMMUs."""

from __future__ import annotations

import os
import select
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vfio_user.errors import ArgumentError, DeadlineError, MalformedReplyError, VfioOSError
from vfio_user.iommu.iommufd.object import IommufdObject
from vfio_user.kernel.fd import OwnedFd
from vfio_user.kernel.uapi import PageFaultFlags, PageFaultPermission, PageResponse, VeventFlags

if TYPE_CHECKING:
    from vfio_user.iommu.iommufd.fd import Iommufd

__all__ = ["FaultQueue", "PageFault", "Vevent", "VeventQueue"]

_FAULT = struct.Struct("=6IQII")
_RESPONSE = struct.Struct("=II")
_VEVENT = struct.Struct("=II")
_READ_SIZE = 4000  # a multiple of the size of a fault; the kernel refuses other counts


class _EventQueue(IommufdObject):
    """An object of an iommufd with a file that becomes readable when something happened.

    Lifetime:
        As other objects; destroying it closes the file first, which keeps it in use.
    Locking:
        Several threads may read; each event goes to one of them.
    """

    def __init__(self, iommufd: Iommufd, number: int, fd: OwnedFd) -> None:
        super().__init__(iommufd, number)
        self._fd = fd

    def fileno(self) -> int:
        """Give the queue's file, for ``select``, ``epoll`` or ``loop.add_reader``.

        Raises:
            ClosedError: it was destroyed.
        """
        return self._fd.fileno()

    def destroy(self) -> None:
        """Close the file and destroy the queue; destroying twice does nothing.

        Raises:
            VfioIoctlError: EBUSY while page tables report to it.
        """
        self._fd.close()
        super().destroy()

    def _read(self, timeout: float) -> bytes:
        """Read what is there; wait for something first."""
        if timeout < 0:
            raise ArgumentError(f"timeout {timeout} is negative")
        poller = select.poll()
        poller.register(self.fileno(), select.POLLIN)
        if not poller.poll(timeout * 1000):
            raise DeadlineError(f"nothing came on {self!r} within {timeout:g} s")
        try:
            return os.read(self.fileno(), _READ_SIZE)
        except OSError as error:
            raise VfioOSError(error.errno or 0, f"read {self!r}") from error


@dataclass(frozen=True, slots=True)
class PageFault:
    """A device's access to memory that is not there, and that the device waits for."""

    device_id: int
    """The device, by its number in the iommufd."""
    address: int
    """What it wanted to access."""
    permission: PageFaultPermission
    """What it wanted to do there."""
    flags: PageFaultFlags
    """What else is valid."""
    pasid: int
    """Its PASID, if the flags say so."""
    group: int
    """Number of its group, which is answered at once."""
    length: int
    """How many bytes from the address would be good to have; 0 when the device did not say."""
    cookie: int
    """What to answer with."""


class FaultQueue(_EventQueue):
    """I/O page faults of the page tables that were made with this queue.

    No emulated device has ATS and PRI, which page faults need: it is exercised on the kernel's mock IOMMU only.

    Lifetime:
        See `IommufdObject`.
    Locking:
        Several threads may read; each fault goes to one of them, and any may answer it.
    """

    def read(self, timeout: float) -> list[PageFault]:
        """Wait for page faults and give those that are there; answer each group with `respond`.

        Args:
            timeout: seconds.

        Raises:
            DeadlineError: there was none.
            MalformedReplyError: the kernel gave a part of one.
        """
        raw = self._read(timeout)
        if len(raw) % _FAULT.size:
            raise MalformedReplyError(f"{len(raw)} bytes of page faults, which have {_FAULT.size} each")
        return [_fault(*fields) for fields in _FAULT.iter_unpack(raw)]

    def respond(self, cookies: Iterable[int], code: PageResponse = PageResponse.SUCCESS) -> None:
        """Answer groups of page faults, each by the cookie of its last fault.

        Raises:
            VfioOSError: EINVAL for a cookie that is not open; those before it are answered.
        """
        data = b"".join(_RESPONSE.pack(cookie, code) for cookie in cookies)
        try:
            done = os.write(self.fileno(), data)
        except OSError as error:
            raise VfioOSError(error.errno or 0, f"answer page faults of {self!r}") from error
        if done != len(data):
            answered = done // _RESPONSE.size
            raise VfioOSError(22, f"answer page faults of {self!r}", f"{answered} were answered, the next was not open")


def _fault(
    flags: int, device_id: int, pasid: int, group: int, permission: int, _: int, address: int, length: int, cookie: int
) -> PageFault:
    return PageFault(
        device_id,
        address,
        PageFaultPermission(permission),
        PageFaultFlags(flags),
        pasid,
        group,
        length,
        cookie,
    )


@dataclass(frozen=True, slots=True)
class Vevent:
    """An event of a virtual IOMMU."""

    flags: VeventFlags
    """Whether events were lost before it; then it has no data."""
    sequence: int
    """Counts events, lost ones too; 31 bits."""
    data: bytes
    """The record, as the hardware has it; its layout depends on the queue's type."""


class VeventQueue(_EventQueue):
    """Events of a virtual IOMMU.

    No emulated IOMMU can be a virtual one's parent: it is exercised on the kernel's mock IOMMU only.

    Lifetime:
        See `IommufdObject`.
    Locking:
        Several threads may read; each event goes to one of them.
    """

    def __init__(self, iommufd: Iommufd, number: int, fd: OwnedFd, record_size: int) -> None:
        super().__init__(iommufd, number, fd)
        self.record_size = record_size
        """Bytes of a record."""

    def read(self, timeout: float) -> list[Vevent]:
        """Wait for events and give those that are there.

        Args:
            timeout: seconds.

        Raises:
            DeadlineError: there was none.
            MalformedReplyError: the kernel gave a part of one.
        """
        raw = self._read(timeout)
        events: list[Vevent] = []
        at = 0
        while at < len(raw):
            if at + _VEVENT.size > len(raw):
                raise MalformedReplyError(f"an event of {self!r} is cut off at {at}")
            flags, sequence = _VEVENT.unpack_from(raw, at)
            at += _VEVENT.size
            size = 0 if flags & VeventFlags.LOST_EVENTS else self.record_size
            if at + size > len(raw):
                raise MalformedReplyError(f"an event of {self!r} has {len(raw) - at} bytes, not {size}")
            events.append(Vevent(VeventFlags(flags), sequence, raw[at : at + size]))
            at += size
        return events

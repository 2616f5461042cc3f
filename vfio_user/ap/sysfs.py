"""Adjunct processors (crypto cards) as sysfs shows them: the matrix, and what of it a mediated device has.

A queue is an adapter and a usage domain. The machine's masks (``apmask``, ``aqmask``) say which are left to VFIO.

Source: ``Documentation/arch/s390/vfio-ap.rst``.
"""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from vfio_user.ap.kvm import KvmVm
from vfio_user.errors import ArgumentError, BoundsError, MalformedReplyError, UnsupportedError, VfioOSError
from vfio_user.kernel import sysfs, writes
from vfio_user.mdev.sysfs import Mdev, MdevParent

__all__ = ["ApMdev", "ApQueue", "create", "matrix", "require_ap"]

_TYPE = "vfio_ap-passthrough"
_QUEUE = re.compile(r"([0-9a-f]{2})\.([0-9a-f]{4})")
_HINTS = {
    "EADDRNOTAVAIL": "The machine's own drivers have that queue: take it from them by /sys/bus/ap/apmask and aqmask",
    "EADDRINUSE": "Another mediated device has that queue",
    "ENODEV": "The machine has no such adapter or domain",
}


@dataclass(frozen=True, slots=True, order=True)
class ApQueue:
    """One queue: an adapter, and a usage domain of it."""

    adapter: int
    """Number of the adapter, 0 to 255."""
    domain: int
    """Number of the domain, 0 to 255."""

    @classmethod
    def parse(cls, text: str) -> ApQueue:
        """Read ``"03.0006"``, as sysfs spells it.

        Raises:
            MalformedReplyError: it is none.
        """
        match = _QUEUE.fullmatch(text)
        if match is None:
            raise MalformedReplyError(f"{text!r} is not an adapter and a domain, such as 03.0006")
        return cls(int(match[1], 16), int(match[2], 16))

    def __str__(self) -> str:
        return f"{self.adapter:02x}.{self.domain:04x}"


@dataclass(frozen=True)
class ApMdev(Mdev):
    """A mediated device of the matrix: queues are assigned to it, then `vfio_user.open_ap` opens it.

    Lifetime:
        A value. The instance lives until `remove`.
    Locking:
        None; every property is read when it is asked for.
    """

    vm: KvmVm | None = field(default=None, compare=False, repr=False)
    """The virtual machine on whose behalf it is opened."""

    def introduce(self, fd: int, /) -> None:
        """Tell the virtual machine of it; the kernel opens it for one only."""
        if self.vm is not None:
            self.vm.add(fd)

    @property
    def queues(self) -> tuple[ApQueue, ...]:
        """The queues that are assigned to it."""
        return self._queues("matrix")

    @property
    def guest_queues(self) -> tuple[ApQueue, ...]:
        """Those of them that are there and bound to ``vfio_ap``, which alone a virtual machine sees."""
        return self._queues("guest_matrix")

    @property
    def control_domains(self) -> tuple[int, ...]:
        """The domains that may be controlled through it."""
        return tuple(int(row, 16) for row in (self.text("control_domains") or "").split())

    def assign(
        self, *, adapters: Iterable[int] = (), domains: Iterable[int] = (), control_domains: Iterable[int] = ()
    ) -> None:
        """Assign adapters, usage domains and control domains; each pair of adapter and domain is a queue.

        Args:
            adapters: their numbers, 0 to 255.
            domains: numbers of usage domains.
            control_domains: numbers of domains that may be controlled.

        Raises:
            BoundsError: a number that none has.
            VfioOSError: EADDRNOTAVAIL when the machine's own drivers have a queue, EADDRINUSE when another mediated
                device has; what was assigned before stays.
        """
        self._write("assign", adapters, domains, control_domains)

    def unassign(
        self, *, adapters: Iterable[int] = (), domains: Iterable[int] = (), control_domains: Iterable[int] = ()
    ) -> None:
        """Take them away again. Arguments and errors are those of `assign`."""
        self._write("unassign", adapters, domains, control_domains)

    def _queues(self, name: str) -> tuple[ApQueue, ...]:
        # An adapter without a domain is written as "03.": it makes no queue.
        return tuple(sorted(ApQueue.parse(row) for row in (self.text(name) or "").split() if _QUEUE.fullmatch(row)))

    def _write(self, verb: str, adapters: Iterable[int], domains: Iterable[int], controls: Iterable[int]) -> None:
        for kind, numbers in (("adapter", adapters), ("domain", domains), ("control_domain", controls)):
            for number in numbers:
                if not 0 <= number <= 0xFF:
                    raise BoundsError(f"{kind} {number}: there are 0 to 255")
                try:
                    writes.write(self.path / f"{verb}_{kind}", f"{number:#x}", time.monotonic() + 10.0)
                except VfioOSError as error:
                    hint = _HINTS.get(errno.errorcode.get(error.errno or 0, ""), "")
                    raise VfioOSError(error.errno or 0, f"{verb} {kind} {number:#x} of {self.name}", hint) from error


def matrix() -> MdevParent:
    """Give the machine's matrix, of which mediated devices are made.

    Raises:
        UnsupportedError: there is none: no crypto hardware, or the module ``vfio_ap`` is not loaded.
    """
    path = sysfs.SYSFS / "devices/vfio_ap/matrix"
    if not path.is_dir():
        raise UnsupportedError(
            "this machine has no matrix of adjunct processors: it has no AP instructions (dmesg says: The hardware "
            "system does not support AP instructions), or the module vfio_ap is not loaded"
        )
    return MdevParent(path)


def create() -> ApMdev:
    """Make a mediated device of the matrix, with nothing assigned to it.

    Raises:
        UnsupportedError: there is no matrix.
        BusyError: there is no room for more.
        VfioOSError: the kernel refused.
    """
    return ApMdev(matrix().type(_TYPE).create().uuid)


def require_ap(mdev: Mdev, vm: KvmVm | None) -> ApMdev:
    """Make sure that a mediated device is one of the matrix.

    Raises:
        ArgumentError: it is another kind.
    """
    if mdev.device_api != "vfio-ap":
        raise ArgumentError(f"{mdev} is not of the AP matrix, but one of {mdev.device_api or 'an unknown kind'}")
    return ApMdev(mdev.uuid, vm)

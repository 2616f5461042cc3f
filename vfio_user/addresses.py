"""Typed addresses: what the CPU uses, what the device uses, and where a PCI function sits."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NewType

from vfio_user.errors import ArgumentError

__all__ = ["Iova", "IovaRange", "PciAddress", "PciId", "Vaddr"]

Iova = NewType("Iova", int)
"""An address as the device uses it, translated by the IOMMU."""

Vaddr = NewType("Vaddr", int)
"""An address of this process."""

_BDF = re.compile(
    r"(?:(?P<domain>[0-9a-f]{1,8}):)?(?P<bus>[0-9a-f]{1,2}):(?P<device>[0-9a-f]{1,2})\.(?P<function>[0-7])"
)
# Other spellings of the same: a path in sysfs, udev's names and paths, what QEMU takes; and virsh's names.
_WRAPPED = re.compile(
    r"/sys/(?:\S*/)?(?P<path>[0-9a-f:]+\.[0-7])/?"
    r"|(?:pci[@:]|pci-|/dev/\S+/by-path/pci-)(?P<udev>[0-9a-f]{4,8}:[0-9a-f:]+\.[0-7])"
    r"|(?:vfio-pci,)?host=(?P<qemu>[0-9a-f:]+\.[0-7])"
)
_VIRSH = re.compile(r"pci_([0-9a-f]{4,8})_([0-9a-f]{2})_([0-9a-f]{2})_([0-7])")
_SHOWN = 100
_IDS = r"(?:0x)?(?P<vendor>[0-9a-f]{4}):(?:0x)?(?P<device>[0-9a-f]{4})"
_THESE_ARE_IDS = "these are ids (vendor:device); vfio-user list --id {vendor}:{device} gives the addresses"
_HEX = r"(?:0x)?[0-9a-f]+"
# What looks like an address and is none: pattern, and what to do about it; the pattern's groups are filled in.
_MISTAKES = (
    (r"(?:[0-9a-f]{4,8}:)?[0-9a-f]{1,2}:[0-9a-f]{1,2}", "it lacks the function: write {text}.0 for the first"),
    (_IDS, _THESE_ARE_IDS),
    (rf"\[{_IDS}\]", _THESE_ARE_IDS),
    (r"pci:v0{4}(?P<vendor>[0-9a-f]{4})d0{4}(?P<device>[0-9a-f]{4})\S*", _THESE_ARE_IDS),
    (r"pci:\d+(?:@\d+)?:\d+:\d+", "X.org's BusID is decimal; lspci -D gives the address in hexadecimal"),
    (r"(?:[0-9a-f]{4}:)?[0-9a-f]{1,2}:[0-9a-f]{1,2}[:.][89a-f]", "functions are 0 to 7"),
    (r"(?:[0-9a-f]{4}[:.])?[0-9a-f]{2}[:.][0-9a-f]{2}[:.][0-7]", "the separators are :, : and ."),
    (r"(?P<first>(?:[0-9a-f]{4,8}:)?[0-9a-f]{1,2}:[0-9a-f]{1,2}\.[0-7])[\s,;]+\S.*", "give the address alone: {first}"),
    (r"(?P<first>pci-[0-9a-f]{4,8}:[0-9a-f:]+\.[0-7])-\S+", "this is what hangs on the device; it is {first}"),
    (rf"{_HEX}\.[0-7]", "it lacks the bus: write domain:bus:device.function, such as 0000:01:00.0"),
    (r"<address .*", "write its numbers as domain:bus:slot.function, in hexadecimal and without 0x"),
    (
        r"(?:/dev/)?vfio/?(?:devices/)?(?:noiommu-)?(?:vfio)?(?P<node>\d*)",
        "this is a node; vfio-user list shows which device has which group",
    ),
    (r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", "this is the UUID of a mediated device, which is no PCI function"),
    (r"[a-z_][a-z0-9_-]*", "this is a name; vfio-user list gives addresses, and ls -l /sys/class/*/{text}/device too"),
)


@dataclass(frozen=True, slots=True, order=True)
class PciAddress:
    """Name one PCI function: domain, bus, device (slot) and function.

    ``str()`` gives the spelling of sysfs: ``0000:01:00.0``.
    """

    domain: int
    """PCI domain (segment), 0 to 2^32-1; 0 on most machines."""
    bus: int
    """Bus number, 0 to 255."""
    device: int
    """Device (slot) number on the bus, 0 to 31."""
    function: int
    """Function number of the device, 0 to 7."""

    def __post_init__(self) -> None:
        for name, limit in (("domain", 1 << 32), ("bus", 256), ("device", 32), ("function", 8)):
            value = getattr(self, name)
            if not 0 <= value < limit:
                raise ArgumentError(f"PCI {name} {value:#x} is outside of 0..{limit - 1:#x}")

    @classmethod
    def parse(cls, text: str | PciAddress) -> PciAddress:
        """Read an address as people write it: ``0000:01:00.0`` or ``01:00.0``, in either case.

        Also a path below ``/sys`` that ends in one, the names of udev (``pci:0000:01:00.0``, ``pci@0000:01:00.0``,
        ``pci-0000:01:00.0``) and virsh (``pci_0000_01_00_0``), and QEMU's ``host=01:00.0``.

        Raises:
            ArgumentError: it is not such an address; the message guesses what was meant.
        """
        if isinstance(text, PciAddress):
            return text
        plain = _unwrapped(str(text).strip().lower())
        found = _BDF.fullmatch(plain)
        if found is None:
            raise ArgumentError(f"{_short(text)} is not a PCI address; {_hint(plain)}")
        return cls(*(int(part or "0", 16) for part in found.groups()))

    @property
    def slot(self) -> tuple[int, int, int]:
        """Domain, bus and device: what all functions of a slot share."""
        return (self.domain, self.bus, self.device)

    def __str__(self) -> str:
        return f"{self.domain:04x}:{self.bus:02x}:{self.device:02x}.{self.function:x}"


def _unwrapped(text: str) -> str:
    virsh = _VIRSH.fullmatch(text)
    if virsh is not None:
        return "{}:{}:{}.{}".format(*virsh.groups())
    found = _WRAPPED.fullmatch(text)
    return (found["path"] or found["udev"] or found["qemu"]) if found is not None else text


def _hint(text: str) -> str:
    """Guess what was meant."""
    for pattern, hint in _MISTAKES:
        found = re.fullmatch(pattern, text, re.DOTALL)
        if found is not None:
            return hint.format(text=text, **found.groupdict())
    return "write domain:bus:device.function, such as 0000:01:00.0"


def _short(text: object) -> str:
    shown = repr(text)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"


@dataclass(frozen=True, slots=True)
class PciId:
    """Match a PCI device by vendor and device id, or by class code.

    A field that is `None` matches everything. ``class_code`` has 24 bits: base class, sub-class, interface.
    """

    vendor: int | None = None
    """Vendor id, 16 bits."""
    device: int | None = None
    """Device id, 16 bits."""
    class_code: int | None = None
    """Class code, 24 bits: ``0x010802`` is an NVMe controller."""

    def matches(self, vendor: int, device: int, class_code: int) -> bool:
        """Tell whether a device with these ids is meant."""
        wanted = ((self.vendor, vendor), (self.device, device), (self.class_code, class_code))
        return all(want is None or want == have for want, have in wanted)


@dataclass(frozen=True, slots=True, order=True)
class IovaRange:
    """A range of IOVAs, both ends inclusive, as the uAPI has it."""

    first: int
    """Lowest IOVA of the range."""
    last: int
    """Highest IOVA of the range, inclusive."""

    def __post_init__(self) -> None:
        if not 0 <= self.first <= self.last < 1 << 64:
            raise ArgumentError(f"IOVA range {self.first:#x}..{self.last:#x} is empty or beyond 64 bits")

    @property
    def size(self) -> int:
        """Number of bytes in the range."""
        return self.last - self.first + 1

    def contains(self, iova: int, size: int) -> bool:
        """Tell whether ``size`` bytes from ``iova`` lie inside of the range."""
        return self.first <= iova and size > 0 and iova + size - 1 <= self.last

    def __str__(self) -> str:
        return f"{self.first:#x}..{self.last:#x}"

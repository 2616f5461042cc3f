"""What sysfs says about PCI functions, their IOMMU groups and their VFIO nodes. Reads only."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from vfio_user.addresses import IovaRange, PciAddress
from vfio_user.errors import ArgumentError, MalformedReplyError, VfioOSError

__all__ = [
    "VFIO_DRIVERS",
    "Group",
    "PciFunction",
    "SysfsDevice",
    "VfioNode",
    "cdev_of",
    "group",
    "groups",
    "link_name",
    "memory_windows",
    "pci_function",
    "pci_functions",
    "read_number",
    "read_resource",
    "three_words",
    "vfio_device_in",
]

SYSFS = Path("/sys")
CDEVS = "/dev/vfio/devices"

#: Drivers of VFIO by bus; ccw devices are driven through their subchannels, on the bus css.
VFIO_DRIVERS = {
    "pci": "vfio-pci",
    "platform": "vfio-platform",
    "amba": "vfio-amba",
    "css": "vfio_ccw",
    "fsl-mc": "vfio-fsl-mc",
    "cdx": "vfio-cdx",
}

_BRIDGE_CLASS = 0x06
_RESOURCE_MEMORY = 0x200
_NUMBERS = {10: re.compile(r"[0-9]{1,20}"), 16: re.compile(r"(?:0x)?[0-9a-fA-F]{1,16}")}
_ROOT_BUS = re.compile(r"pci[0-9a-f]{4,8}:[0-9a-f]{2}")
_HARMLESS_DRIVERS = frozenset({"vfio-pci", "pci-stub", "pcieport", "xen-pciback"})
"""Drivers which the kernel takes as owned by the user or as harmless when it tells whether a group is viable."""


class VfioNode(Protocol):
    """What opening a device needs to know of it, whatever its bus."""

    @property
    def name(self) -> str:
        """Its name on its bus, by which its group knows it: a PCI address, a UUID."""

    @property
    def driver(self) -> str | None:
        """Name of the kernel driver that it is bound to; `None` when there is none."""

    @property
    def iommu_group(self) -> int | None:
        """Number of its IOMMU group; `None` when it has none."""

    @property
    def noiommu(self) -> bool:
        """Tell whether its group is one that VFIO made up for want of an IOMMU."""

    @property
    def vfio_device(self) -> str | None:
        """Name of its VFIO character device; `None` unless it is bound to a VFIO driver."""

    @property
    def cdev(self) -> str | None:
        """Path of its own node; `None` when the kernel gives it none."""

    def introduce(self, fd: int, /) -> None:
        """Show the group's file, or that of its own node, to who must know it before the device is opened."""


class SysfsDevice(ABC):
    """A device of any bus as sysfs shows it: what `VfioNode` asks for, read when it is asked for.

    Lifetime:
        A value: a subclass says by `path` where it looks.
    Locking:
        None; reads only.
    """

    @property
    @abstractmethod
    def path(self) -> Path:
        """Its directory in sysfs."""

    @property
    def name(self) -> str:
        """Its name on its bus, as sysfs spells it."""
        return self.path.name

    @property
    def bus(self) -> str:
        """Name of its bus in ``/sys/bus``."""
        return self.path.parent.parent.name

    @property
    def driver(self) -> str | None:
        """Name of the kernel driver that it is bound to; `None` when there is none."""
        return link_name(self.path / "driver")

    @property
    def iommu_group(self) -> int | None:
        """Number of its IOMMU group; `None` when no IOMMU translates for it."""
        name = link_name(self.path / "iommu_group")
        return read_number(name, 10, self.path / "iommu_group") if name is not None else None

    @property
    def noiommu(self) -> bool:
        """Tell whether its group is one that VFIO made up for want of an IOMMU."""
        number = self.iommu_group
        # The group's sysfs name alone does not tell: emulated-IOMMU groups carry "vfio-noiommu" too. The nodes do.
        if number is not None and os.path.exists(f"/dev/vfio/noiommu-{number}"):
            return True
        return (self.vfio_device or "").startswith("noiommu-")

    @property
    def vfio_device(self) -> str | None:
        """Name of its VFIO character device, ``"vfio3"``; `None` unless it is bound to a VFIO driver.

        The name exists in sysfs on kernels that have no such node: see `cdev`.
        """
        return vfio_device_in(self.path)

    @property
    def cdev(self) -> str | None:
        """Path of its own node, ``/dev/vfio/devices/vfio3``; `None` when the kernel gives it none."""
        return cdev_of(self.vfio_device)

    def introduce(self, fd: int, /) -> None:  # noqa: B027  # nothing to do is the rule
        """Show the file that leads to it to nobody: only devices that serve a virtual machine need more."""

    def exists(self) -> bool:
        """Tell whether the machine has it (still)."""
        return self.path.is_dir()

    def text(self, name: str) -> str | None:
        """Read an attribute; `None` when it is missing or not ours to read."""
        try:
            return (self.path / name).read_text(errors="replace").strip()
        except OSError:
            return None


@dataclass(frozen=True)
class PciFunction(SysfsDevice):
    """One PCI function as sysfs shows it; every property is read when it is asked for."""

    address: PciAddress
    """Where it sits."""

    @cached_property
    def path(self) -> Path:
        """Its directory in sysfs."""
        return SYSFS / "bus/pci/devices" / str(self.address)

    @cached_property
    def vendor(self) -> int:
        """Vendor id, 16 bits."""
        return self._number("vendor")

    @cached_property
    def device(self) -> int:
        """Device id, 16 bits."""
        return self._number("device")

    @cached_property
    def class_code(self) -> int:
        """Class code, 24 bits: base class, sub-class, programming interface."""
        return self._number("class")

    @property
    def numa_node(self) -> int | None:
        """NUMA node that it is attached to; `None` when the machine does not say."""
        text = self.text("numa_node")
        return read_number(text, 10, self.path / "numa_node") if text and not text.startswith("-") else None

    @property
    def reset_methods(self) -> tuple[str, ...]:
        """Ways in which the kernel can reset this function alone, in its order: ``("flr", "bus")``."""
        return tuple((self.text("reset_method") or "").split())

    @property
    def is_bridge(self) -> bool:
        """Tell whether it is a bridge; the kernel never needs those of a group to be bound to VFIO."""
        return self.class_code >> 16 == _BRIDGE_CLASS

    @property
    def is_virtual(self) -> bool:
        """Tell whether it is a virtual function (SR-IOV)."""
        return (self.path / "physfn").exists()

    @property
    def total_vfs(self) -> int:
        """How many virtual functions it can have; 0 when it is no physical function (SR-IOV)."""
        text = self.text("sriov_totalvfs")
        return read_number(text, 10, self.path / "sriov_totalvfs") if text else 0

    @property
    def on_root_bus(self) -> bool:
        """Tell whether it sits on a root bus, where no bridge is above that could reset it."""
        return _ROOT_BUS.fullmatch(os.path.basename(os.path.dirname(os.path.realpath(self.path)))) is not None

    def _number(self, name: str) -> int:
        path = self.path / name
        try:
            text = path.read_text(errors="replace").strip()
        except OSError as error:
            hint = "Is there such a device? lspci -D lists them."
            raise VfioOSError(error.errno or 0, f"read {path}", hint) from error
        return read_number(text, 16, path)


@dataclass(frozen=True, slots=True)
class Group:
    """One IOMMU group: the smallest set of devices that the IOMMU can tell from others."""

    number: int
    """Number of the group; its node is ``/dev/vfio/<number>``, or ``noiommu-<number>``."""

    @property
    def members(self) -> tuple[PciFunction, ...]:
        """Its PCI functions, ordered by address."""
        return tuple(_functions_in(SYSFS / "kernel/iommu_groups" / str(self.number) / "devices"))

    @property
    def member_names(self) -> tuple[str, ...]:
        """Names of its devices of all buses, sorted."""
        return tuple(sorted(_names_in(SYSFS / "kernel/iommu_groups" / str(self.number) / "devices")))

    @property
    def culprits(self) -> tuple[PciFunction, ...]:
        """Its functions that keep it from being viable: bound to a driver that is neither VFIO nor harmless."""
        return tuple(member for member in self.members if member.driver is not None and not _is_viable(member.driver))


def pci_function(address: PciAddress | str) -> PciFunction:
    """Give one function, which must exist.

    Raises:
        ArgumentError: not an address, or the machine has no such function.
    """
    function = PciFunction(PciAddress.parse(address))
    if not function.exists():
        raise ArgumentError(f"there is no PCI function {function.address} on this machine; lspci -D lists them")
    return function


def pci_functions() -> tuple[PciFunction, ...]:
    """Give all functions of the machine, ordered by address."""
    return tuple(_functions_in(SYSFS / "bus/pci/devices"))


def memory_windows() -> tuple[IovaRange, ...]:
    """Give the bus addresses that PCI functions and bridges answer at, in memory space."""
    lines: set[str] = set()
    for function in _names_in(SYSFS / "bus/pci/devices"):
        try:
            lines.update((SYSFS / "bus/pci/devices" / function / "resource").read_text(errors="replace").splitlines())
        except OSError:
            continue  # it went away meanwhile
    found = set()
    for line in lines:  # most are of zeros, and there once
        start, end, flags = read_resource(line)
        if flags & _RESOURCE_MEMORY and start < end:
            found.add(IovaRange(start, end))
    return tuple(sorted(found))


def read_number(text: str, base: int, source: object = "sysfs") -> int:
    """Read a number of at most 64 bits, as the kernel writes it; nothing else is let through.

    Args:
        text: what a file of sysfs holds.
        base: 10 or 16.
        source: the file, for messages.

    Raises:
        MalformedReplyError: it is not such a number.
    """
    if not _NUMBERS[base].fullmatch(text) or (value := int(text, base)) >= 1 << 64:
        raise MalformedReplyError(f"{source} says {text[:40]!r}, which is no number that the kernel writes")
    return value


def three_words(line: str) -> tuple[str, str, str]:
    """Split a line of a table in sysfs that has three columns.

    Raises:
        MalformedReplyError: it has not.
    """
    words = line.split()
    if len(words) != 3:
        raise MalformedReplyError(f"sysfs says {line[:80]!r} where there should be three words")
    return words[0], words[1], words[2]


def read_resource(line: str) -> tuple[int, int, int]:
    """Read a line of a function's file ``resource``: first address, last address, flags.

    Raises:
        MalformedReplyError: it is not such a line.
    """
    start, end, flags = (read_number(word, 16) for word in three_words(line))
    return start, end, flags


def group(number: int) -> Group:
    """Give one group by its number."""
    return Group(number)


def groups() -> tuple[Group, ...]:
    """Give all groups of the machine, ordered by number."""
    names = _names_in(SYSFS / "kernel/iommu_groups")
    return tuple(Group(number) for number in sorted(int(name) for name in names if _NUMBERS[10].fullmatch(name)))


def vfio_device_in(folder: Path) -> str | None:
    """Give the name of the VFIO character device of what is described in a folder of sysfs; `None` without one."""
    return min(_names_in(folder / "vfio-dev"), default=None)


def cdev_of(name: str | None) -> str | None:
    """Give the path of a VFIO character device by its name, if there is such a node."""
    path = f"{CDEVS}/{name}"
    return path if name is not None and os.path.exists(path) else None


def _is_viable(driver: str) -> bool:
    return driver in _HARMLESS_DRIVERS or "vfio" in driver


def _names_in(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _functions_in(directory: Path) -> list[PciFunction]:
    found = []
    for name in _names_in(directory):
        try:
            found.append(PciFunction(PciAddress.parse(name)))
        except ArgumentError:
            continue  # a group may hold devices of other buses
    return sorted(found, key=lambda function: function.address)


def link_name(link: Path) -> str | None:
    """Give the last part of what a link leads to; `None` when there is no such link."""
    try:
        return os.path.basename(os.readlink(link))
    except OSError:
        return None

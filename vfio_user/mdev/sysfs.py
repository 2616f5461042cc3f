"""Mediated devices as sysfs shows them: parents, their types, the instances; and how instances are made and removed.

Source: ``drivers/vfio/mdev/mdev_sysfs.c``, ``Documentation/driver-api/vfio-mediated-device.rst``.
"""

from __future__ import annotations

import errno
import os
import time
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

from vfio_user.device.base import open_devices
from vfio_user.errors import ArgumentError, BusyError, UnsupportedError, VfioOSError
from vfio_user.kernel import sysfs, writes

__all__ = ["Mdev", "MdevParent", "MdevType", "mdev", "mdev_parent", "mdev_parents", "mdevs"]

_TIMEOUT = 10.0


@dataclass(frozen=True)
class Mdev(sysfs.SysfsDevice):
    """One mediated device: an instance of a type, known by its UUID.

    Lifetime:
        A value. The instance itself lives until `remove`, or until the machine is switched off.
    Locking:
        None; every property is read when it is asked for.
    """

    uuid: UUID
    """Its name."""

    @property
    def path(self) -> Path:
        """Its directory in sysfs."""
        return sysfs.SYSFS / "bus/mdev/devices" / str(self.uuid)

    @property
    def parent(self) -> MdevParent:
        """The device that it is made of.

        Raises:
            VfioOSError: it is gone.
        """
        return MdevParent(self._where().parent)

    @property
    def type(self) -> MdevType:
        """What kind of device it is.

        Raises:
            VfioOSError: it is gone.
        """
        name = sysfs.link_name(self.path / "mdev_type")
        if name is None:
            raise _gone(self)
        return MdevType(self.parent, name)

    @property
    def device_api(self) -> str:
        """How it presents itself: ``"vfio-pci"``, ``"vfio-ccw"``, ``"vfio-ap"``."""
        return self.type.device_api

    def remove(self, timeout: float = _TIMEOUT) -> None:
        """Remove the instance; what it held of its parent is free again.

        The kernel waits for whoever has it open, so this process must not.

        Raises:
            BusyError: this process has it open.
            DeadlineError: somebody else has; the kernel removes it as soon as it is closed.
            VfioOSError: the kernel refused: ENOENT when it is gone already.
        """
        if any(vdev.name == self.name for vdev in open_devices()):
            raise BusyError(f"{self.name} is open in this process; close it first")
        writes.write(self.path / "remove", "1", time.monotonic() + timeout)

    def _where(self) -> Path:
        try:
            return self.path.resolve(strict=True)
        except OSError as error:
            raise _gone(self) from error

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class MdevParent:
    """A device of which mediated devices can be made: a GPU, a subchannel, a crypto matrix, a sample of the kernel.

    Lifetime:
        A value.
    Locking:
        None; every property is read when it is asked for.
    """

    path: Path
    """Its directory in sysfs."""

    @property
    def name(self) -> str:
        """Its name on its own bus: ``"mtty"``, ``"0000:00:02.0"``, ``"0.0.0001"``."""
        return self.path.name

    @property
    def types(self) -> tuple[MdevType, ...]:
        """What can be made of it, ordered by name."""
        return tuple(MdevType(self, name) for name in _names(self.path / "mdev_supported_types"))

    @property
    def mdevs(self) -> tuple[Mdev, ...]:
        """What has been made of it, ordered by UUID."""
        return tuple(each for kind in self.types for each in kind.mdevs)

    def type(self, name: str) -> MdevType:
        """Give one of its types by name; what stands before the last hyphen, the driver's name, may be left out.

        Raises:
            ArgumentError: it has no such type; the message lists those that it has.
        """
        found = [each for each in self.types if name in (each.name, each.name.rpartition("-")[2])]
        if len(found) != 1:
            have = ", ".join(each.name for each in self.types) or "none"
            raise ArgumentError(f"{self.name} has no type {name!r} of mediated devices; it has: {have}")
        return found[0]

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class MdevType:
    """A kind of mediated device that a parent offers.

    Lifetime:
        A value.
    Locking:
        None; every property is read when it is asked for.
    """

    parent: MdevParent
    """Whose it is."""
    name: str
    """Its name in sysfs: the parent's driver, a hyphen, and the driver's own name for it."""

    @property
    def path(self) -> Path:
        """Its directory in sysfs."""
        return self.parent.path / "mdev_supported_types" / self.name

    @property
    def title(self) -> str:
        """What the driver calls it, for people."""
        return self._text("name") or self.name

    @property
    def description(self) -> str:
        """What the driver says of it, possibly several lines; empty when it says nothing."""
        return self._text("description")

    @property
    def device_api(self) -> str:
        """How its instances present themselves: ``"vfio-pci"``, ``"vfio-ccw"``, ``"vfio-ap"``."""
        return self._text("device_api")

    @property
    def available(self) -> int:
        """How many more instances can be made, as of now."""
        text = self._text("available_instances")
        return int(text) if text.isdecimal() else 0

    @property
    def mdevs(self) -> tuple[Mdev, ...]:
        """Its instances, ordered by UUID."""
        return _mdevs(_names(self.path / "devices"))

    def create(self, uuid: UUID | str | None = None, timeout: float = _TIMEOUT) -> Mdev:
        """Make an instance; `Mdev.remove` is its opposite.

        Args:
            uuid: its name; by default a random one.
            timeout: seconds for the kernel and the driver's probe.

        Raises:
            ArgumentError: not a UUID.
            BusyError: there is an instance of that name, or no more can be made; says which.
            DeadlineError: the kernel did not come back.
            VfioOSError: it refused; errno is kept.
        """
        made = Mdev(uuid4() if uuid is None else _parse(uuid))
        try:
            writes.write(self.path / "create", str(made.uuid), time.monotonic() + timeout)
        except VfioOSError as error:
            raise self._refused(made, error) from error
        return made

    def _refused(self, made: Mdev, error: VfioOSError) -> Exception:
        if error.errno == errno.EEXIST or made.exists():
            return BusyError(f"there is a mediated device {made} already; take another UUID, or none")
        if error.errno in (errno.ENOSPC, errno.EUSERS):
            return BusyError(f"{self.parent} has no room for another {self.name}: {self.available} are left")
        return error

    def _text(self, name: str) -> str:
        try:
            return (self.path / name).read_text(errors="replace").strip()
        except OSError:
            return ""

    def __str__(self) -> str:
        return self.name


def mdev_parents() -> tuple[MdevParent, ...]:
    """Give the devices of which mediated devices can be made, ordered by name."""
    folder = sysfs.SYSFS / "class/mdev_bus"
    return tuple(MdevParent((folder / name).resolve()) for name in _names(folder))


def mdev_parent(name: str) -> MdevParent:
    """Give one parent by its name.

    Raises:
        UnsupportedError: the machine has none of that name; the message lists those that it has.
    """
    parents = mdev_parents()
    for each in parents:
        if each.name == name:
            return each
    have = ", ".join(each.name for each in parents) or "none (modprobe the driver that offers them)"
    raise UnsupportedError(f"no device {name!r} offers mediated devices here; those that do: {have}")


def mdevs() -> tuple[Mdev, ...]:
    """Give the mediated devices of the machine, ordered by UUID."""
    return _mdevs(_names(sysfs.SYSFS / "bus/mdev/devices"))


def mdev(uuid: Mdev | UUID | str) -> Mdev:
    """Give one mediated device, which must exist.

    Raises:
        ArgumentError: not a UUID, or the machine has no such device.
    """
    found = uuid if isinstance(uuid, Mdev) else Mdev(_parse(uuid))
    if not found.exists():
        raise ArgumentError(f"there is no mediated device {found} on this machine; ls /sys/bus/mdev/devices lists them")
    return found


def _parse(text: UUID | str) -> UUID:
    try:
        return text if isinstance(text, UUID) else UUID(text)
    except ValueError:
        raise ArgumentError(f"{text!r} is not a UUID, such as {uuid4()}") from None


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _mdevs(names: list[str]) -> tuple[Mdev, ...]:
    return tuple(Mdev(UUID(name)) for name in names)


def _gone(found: Mdev) -> VfioOSError:
    return VfioOSError(errno.ENOENT, f"look at mediated device {found}", "It was removed")

"""Tell whether somebody uses a device through its present driver, so that taking it away would hurt."""

from __future__ import annotations

import enum
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vfio_user.binding import files
from vfio_user.binding.disks import disks_in_use, shares_in_use
from vfio_user.binding.files import entries, text
from vfio_user.binding.state import expected_nodes
from vfio_user.kernel import sysfs

__all__ = ["Use", "UseKind", "openers", "uses"]

_UP = 1  # IFF_UP
_DEFAULT_V4 = "00000000"
_DEFAULT_V6 = "0" * 32


class UseKind(enum.Enum):
    """Ways in which a device can be in use."""

    BRIDGE = "bridge"
    """It is a bridge: other devices are reached through it."""
    DISK = "disk"
    """A disk of it is mounted, swap space, or part of something else."""
    SHARE = "share"
    """A folder of the host that it shares is mounted."""
    INTERFACE = "interface"
    """A network interface of it is up."""
    DISPLAY = "display"
    """The firmware's and kernel's messages are shown on it."""
    CONSOLE = "console"
    """A console of the kernel is on it."""
    VFS = "vfs"
    """Its virtual functions are switched on; they vanish with its driver."""
    OPEN = "open"
    """A process has its VFIO node open; the kernel waits for it to let go."""


@dataclass(frozen=True, slots=True)
class Use:
    """One way in which a device is in use."""

    kind: UseKind
    """Which way."""
    what: str
    """What exactly, in words: ``"eth0 is up and carries the default route"``."""


def uses(device: sysfs.SysfsDevice) -> tuple[Use, ...]:
    """Give all the ways in which a device is in use, as far as this process may see; of any bus."""
    found = [*_contents(device)]
    if isinstance(device, sysfs.PciFunction):
        found += _of_function(device)
    return tuple(found)


def openers(function: sysfs.PciFunction) -> tuple[tuple[int, str], ...]:
    """Give id and name of each process that has a VFIO node of a function open.

    Without root, only processes of the same user are seen.
    """
    nodes = {str(path) for path, _ in expected_nodes(function)}
    if not nodes:
        return ()
    found = []
    for process in entries(files.PROC):
        if process.name.isdecimal() and _has_open(process, nodes):
            pid = int(process.name)
            found.append((pid, "this one" if pid == os.getpid() else text(process / "comm") or "?"))
    return tuple(sorted(found))


def _contents(device: sysfs.SysfsDevice) -> Iterator[Use]:
    """Look at what the kernel has made of it."""
    for what in disks_in_use(device):
        yield Use(UseKind.DISK, what)
    for what in shares_in_use(device):
        yield Use(UseKind.SHARE, what)
    for what in _interfaces(device):
        yield Use(UseKind.INTERFACE, what)
    for name in text(sysfs.SYSFS / "class/tty/console/active").split():
        if _below(sysfs.SYSFS / "class/tty" / name, device):
            yield Use(UseKind.CONSOLE, f"the kernel's console {name} is on it")


def _of_function(function: sysfs.PciFunction) -> Iterator[Use]:
    """Look at what only PCI has."""
    if function.is_bridge:
        yield Use(UseKind.BRIDGE, "it is a bridge, other devices are reached through it")
    if text(function.path / "boot_vga") == "1":
        yield Use(UseKind.DISPLAY, "it is the display that the machine booted with")
    virtual = text(function.path / "sriov_numvfs")
    if virtual.isdecimal() and int(virtual):
        yield Use(UseKind.VFS, f"{virtual} virtual functions of it are switched on, and would vanish")
    for pid, name in openers(function):
        yield Use(UseKind.OPEN, f"process {pid} ({name}) has it open through VFIO")


def _interfaces(device: sysfs.SysfsDevice) -> Iterator[str]:
    routed = set(_default_routes())
    for path in entries(sysfs.SYSFS / "class/net"):
        if not _below(path, device):
            continue
        flags = text(path / "flags")
        if path.name in routed:
            yield f"{path.name} carries the default route"
        elif flags and sysfs.read_number(flags, 16, path) & _UP:
            yield f"{path.name} is up"


def _default_routes() -> Iterator[str]:
    for line in text(files.PROC / "net/route").splitlines()[1:]:
        fields = line.split()
        if len(fields) > 7 and fields[1] == fields[7] == _DEFAULT_V4:
            yield fields[0]
    for line in text(files.PROC / "net/ipv6_route").splitlines():
        fields = line.split()
        # The kernel itself keeps an unreachable default route, on the loopback interface.
        if len(fields) > 9 and fields[0] == _DEFAULT_V6 and fields[1] == "00" and fields[9] != "lo":
            yield fields[9]


def _has_open(process: Path, nodes: set[str]) -> bool:
    for link in entries(process / "fd"):
        try:
            if os.readlink(link) in nodes:
                return True
        except OSError:
            continue
    return False


def _below(path: Path, device: sysfs.SysfsDevice) -> bool:
    return os.path.realpath(path).startswith(os.path.realpath(device.path) + "/")

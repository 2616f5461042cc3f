"""What binding changes of a device, as it is now: driver, override, virtual functions, nodes."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from vfio_user.binding import files
from vfio_user.binding.files import text
from vfio_user.kernel import sysfs

__all__ = ["BindState", "NodeState", "driver_override", "expected_nodes", "module_of", "node_state", "read_state"]

_UNSET = frozenset({"", "(null)"})


@dataclass(frozen=True, slots=True)
class NodeState:
    """Owner and mode of a device node."""

    path: str
    """Where it is: ``/dev/vfio/7``."""
    uid: int
    """Owner, as a number."""
    gid: int
    """Group, as a number."""
    mode: int
    """Permission bits, without the file type."""


@dataclass(frozen=True, slots=True)
class BindState:
    """What binding changes of a device."""

    driver: str | None
    """Kernel driver; `None` without one."""
    module: str | None
    """Module of that driver; `None` when it is built in, or there is no driver."""
    override: str | None
    """``driver_override``; `None` when it is not set."""
    numvfs: int | None
    """Number of virtual functions that are switched on; `None` where there can't be any."""
    nodes: tuple[NodeState, ...]
    """VFIO nodes that lead to it."""


def read_state(function: sysfs.PciFunction) -> BindState:
    """Read the state of a function from sysfs and ``/dev``."""
    driver = function.driver
    nodes = (node_state(path) for path, _ in expected_nodes(function))
    return BindState(
        driver=driver,
        module=module_of(driver) if driver is not None else None,
        override=driver_override(function),
        numvfs=_numvfs(function.path),
        nodes=tuple(node for node in nodes if node is not None),
    )


def driver_override(device: sysfs.SysfsDevice) -> str | None:
    """Read ``driver_override``; `None` when it is not set."""
    try:
        text = (device.path / "driver_override").read_text().strip()
    except OSError:
        return None
    return None if text in _UNSET else text


def module_of(driver: str) -> str | None:
    """Name the module of a driver; `None` when it is built in, or not there."""
    try:
        return os.path.basename(os.readlink(sysfs.SYSFS / "bus/pci/drivers" / driver / "module"))
    except OSError:
        return None


def expected_nodes(function: sysfs.PciFunction) -> list[tuple[Path, str]]:
    """Give the VFIO nodes that the kernel has for a function, with their ``major:minor``, whether or not they exist."""
    found: list[tuple[Path, str]] = []
    number = function.iommu_group
    if number is not None:
        for name in (str(number), f"noiommu-{number}"):
            device = text(sysfs.SYSFS / "class/vfio" / name / "dev")
            if device:
                found.append((files.DEV / "vfio" / name, device))
    name = function.vfio_device or ""
    device = text(function.path / "vfio-dev" / name / "dev") if name else ""
    if device:
        found.append((files.DEV / "vfio/devices" / name, device))
    return found


def node_state(path: Path) -> NodeState | None:
    """Read owner and mode of a node; `None` when it does not exist."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return NodeState(str(path), status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode))


def _numvfs(path: Path) -> int | None:
    number = text(path / "sriov_numvfs")
    return int(number) if number.isdecimal() else None

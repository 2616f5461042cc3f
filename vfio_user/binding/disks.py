"""Which disks and shared folders hang on a device, and what they are used for."""

from __future__ import annotations

import errno
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from vfio_user.binding import files
from vfio_user.binding.files import entries, text
from vfio_user.kernel import sysfs

__all__ = ["disks_below", "disks_in_use", "shares_in_use"]

_ESCAPED = re.compile(r"\\([0-7]{3})")  # how /proc writes a blank


def disks_below(device: sysfs.SysfsDevice) -> tuple[str, ...]:
    """Give the names of the whole disks that a device serves, in order: ``("nvme0n1",)``."""
    top = os.path.realpath(device.path) + "/"
    names = {
        path.name
        for path in entries(sysfs.SYSFS / "class/block")
        if os.path.realpath(path).startswith(top) and _is_disk(path)
    }
    return tuple(sorted(names | set(_multipath_heads(top))))


def disks_in_use(device: sysfs.SysfsDevice) -> Iterator[str]:
    """Say what the disks of a device are used for: ``"nvme0n1p2 is mounted at /home"``."""
    mounts = _mounts()
    swaps = _swaps()
    for disk in disks_below(device):
        found = list(_uses(disk, mounts, swaps, set()))
        yield from found
        if not found and _claimed(disk):
            yield f"{disk} is claimed in the kernel (a file system, RAID, ZFS or the like)"


def shares_in_use(device: sysfs.SysfsDevice) -> Iterator[str]:
    """Say where a folder of the host that a device shares by 9p is mounted; its driver waits for that to end."""
    top, mounts = os.path.realpath(device.path) + "/", _mounts()
    for path in entries(sysfs.SYSFS / "bus/virtio/devices"):
        tag = text(path / "mount_tag").rstrip("\0")
        if tag and os.path.realpath(path).startswith(top):
            for where in mounts.get(_share(tag), ()):
                yield f"the share {tag} is mounted at {where}"


def _is_disk(path: Path) -> bool:
    # Hidden disks are the paths of native NVMe multipath: nobody can use them directly.
    return not (path / "partition").exists() and text(path / "hidden") != "1"


def _uses(name: str, mounts: dict[str, list[str]], swaps: set[str], seen: set[str]) -> Iterator[str]:
    """Look at a disk, its partitions, and what is stacked on them (device mapper, RAID)."""
    if name in seen:
        return
    seen.add(name)
    folder = sysfs.SYSFS / "class/block" / name
    for where in dict.fromkeys((*mounts.get(text(folder / "dev"), ()), *mounts.get(name, ()))):
        yield f"{name} is mounted at {where}"
    if name in swaps:
        yield f"{name} is swap space"
    above = [each.name for each in entries(folder / "holders")]
    parts = [each.name for each in entries(folder) if (each / "partition").exists()]
    for other in (*parts, *above):
        found = list(_uses(other, mounts, swaps, seen))
        yield from found
        if other in above and not found:
            yield f"{name} is part of {other}"


def _multipath_heads(top: str) -> Iterator[str]:
    """Native NVMe multipath puts the disks beside the controllers that serve them."""
    for subsystem in entries(sysfs.SYSFS / "class/nvme-subsystem"):
        inside = list(entries(subsystem))
        if any(os.path.realpath(each).startswith(top) for each in inside if each.is_symlink()):
            for each in inside:
                if not each.is_symlink() and (sysfs.SYSFS / "class/block" / each.name).exists():
                    yield each.name


def _mounts() -> dict[str, list[str]]:
    """Map ``major:minor``, and the name of the source, to mount points; of this process and of the first one."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    lines = {line for who in ("1", "self") for line in text(files.PROC / who / "mountinfo").splitlines()}
    for line in sorted(lines):
        before, _, after = line.partition(" - ")
        fields, rest = before.split(), after.split()
        if len(fields) < 5 or len(rest) < 2:
            continue
        where = _ESCAPED.sub(lambda found: chr(int(found[1], 8)), fields[4])
        # Some file systems (btrfs) have a number of their own; then the source tells.
        source = os.path.basename(os.path.realpath(rest[1])) if rest[1].startswith("/dev/") else ""
        if rest[0] == "9p":
            source = _share(rest[1])
        for key in {fields[2], source} - {""}:
            if where not in found[key]:
                found[key].append(where)
    return found


def _share(tag: str) -> str:
    return f"9p {tag}"


def _swaps() -> set[str]:
    lines = text(files.PROC / "swaps").splitlines()[1:]
    return {os.path.basename(os.path.realpath(line.split()[0])) for line in lines if line.strip()}


def _claimed(disk: str) -> bool:
    """Ask for exclusive use, which whoever mounts or stacks a disk has; opening to read changes nothing."""
    try:
        os.close(os.open(files.DEV / disk, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False

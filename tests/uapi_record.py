"""pytest plugin: note which requests of the uAPI the kernel granted while the tests ran.

``tests/lanes.py`` loads it in guests (``-p tests.uapi_record``); it writes ``uapi.json`` beside the lane's results, of
which ``tests/uapi_table.py`` makes a table.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from vfio_user._uapi import ffi, lib
from vfio_user.kernel import ioctl
from vfio_user.kernel.ioctl import requests
from vfio_user.kernel.uapi import DeviceFeature
from vfio_user.testing import in_guest, output

if TYPE_CHECKING:
    from vfio_user._uapi import CData

__all__ = ["granted", "name_of", "rows"]

NO_MODE = "-"
#: What kind of file takes a request, by the beginning of its name; numbers mean something else on another kind.
_KINDS = {
    "VFIO_GROUP_": "group",
    "VFIO_DEVICE_": "device",
    "VFIO_MIG_": "migration",
    "VFIO_": "container",
    "IOMMU_": "iommufd",
}
_FEATURE = int(requests.VFIO_DEVICE_FEATURE.number)

#: For each request that was granted, the IOMMU modes of the tests in which it was.
granted: defaultdict[str, set[str]] = defaultdict(set)
_mode = NO_MODE


def rows() -> list[str]:
    """Give the names of all requests, and of all features of a device, in the order of the uAPI."""
    found = []
    for name in vars(requests):
        found.append(name)
        if name == "VFIO_DEVICE_FEATURE":
            found += [f"{name} {feature.name}" for feature in DeviceFeature]
    return found


def _kind_of(name: str) -> str:
    return next(kind for prefix, kind in _KINDS.items() if name.startswith(prefix))


# Of those that share a number on one kind of file, the first: the others are for POWER (SPAPR).
_NAMES = {(_kind_of(name), getattr(requests, name).number): name for name in reversed(vars(requests))}


def name_of(path: str, number: int) -> str | None:
    """Name a request by its number and the file that it is made on; `None` for one that is not of the uAPI."""
    if path in ("/dev/vfio/vfio", "/dev/iommu"):
        kinds: tuple[str, ...] = ("iommufd", "container")  # an iommufd stands in for a container, too
    elif "mig" in path:
        kinds = ("migration", "device")
    elif path.startswith("/dev/vfio/") and not path.startswith("/dev/vfio/devices/"):
        kinds = ("group",)
    else:
        kinds = ("device",)
    return next((_NAMES[kind, number] for kind in kinds if (kind, number) in _NAMES), None)


def _note(fd: int, number: int, argument: CData) -> None:
    path = ""
    with suppress(OSError):
        path = os.readlink(f"/proc/self/fd/{fd}")
    name = name_of(path, number)
    if name is None:
        return
    granted[name].add(_mode)
    if number == _FEATURE and name == "VFIO_DEVICE_FEATURE":
        flags = ffi.cast("struct vfio_device_feature *", argument).flags
        feature = flags & lib.VFIO_DEVICE_FEATURE_MASK
        if not flags & lib.VFIO_DEVICE_FEATURE_PROBE and feature in set(DeviceFeature):
            granted[f"{name} {DeviceFeature(feature).name}"].add(_mode)


def pytest_configure() -> None:
    """Stand between the package and the kernel."""
    one, many = ioctl.system_call, ioctl.system_call_many

    def system_call(fd: int, number: int, argument: CData) -> int:
        result = one(fd, number, argument)
        if result >= 0:
            _note(fd, number, argument)
        return result

    def system_call_many(fd: int, number: int, arguments: CData, stride: int, count: int, done: CData) -> int:
        result = many(fd, number, arguments, stride, count, done)
        if done[0]:
            _note(fd, number, arguments)
        return result

    ioctl.system_call, ioctl.system_call_many = system_call, system_call_many


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Know in which mode a test runs."""
    global _mode
    callspec = getattr(item, "callspec", None)
    _mode = str(callspec.params.get("iommu_mode", NO_MODE)) if callspec is not None else NO_MODE
    yield
    _mode = NO_MODE


def pytest_sessionfinish() -> None:
    """Write what was noted to the folder that outlives the guest."""
    if in_guest():
        text = json.dumps({name: sorted(modes) for name, modes in sorted(granted.items())}, indent=1)
        (output() / "uapi.json").write_text(text)

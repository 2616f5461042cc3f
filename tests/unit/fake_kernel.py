"""VFIO without a kernel, for failures that a guest does not have: containers, groups and devices.

What works is tested in guests, on the real thing. This one answers the few requests that the package makes, and
fails those that a test names, with the errno that it names.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING

from tests.unit.fake_device import FakeDevice
from vfio_user._uapi import ffi, lib
from vfio_user.kernel import ioctl
from vfio_user.kernel.ioctl import requests

if TYPE_CHECKING:
    import pytest

    from vfio_user._uapi import CData

INFO_SIZE = 24
# Files of different kinds give the same number different meanings.
_REQUESTS = {
    "container": (
        "VFIO_GET_API_VERSION",
        "VFIO_CHECK_EXTENSION",
        "VFIO_SET_IOMMU",
        "VFIO_IOMMU_GET_INFO",
        "VFIO_IOMMU_MAP_DMA",
        "VFIO_IOMMU_UNMAP_DMA",
    ),
    "group": (
        "VFIO_GROUP_GET_STATUS",
        "VFIO_GROUP_SET_CONTAINER",
        "VFIO_GROUP_UNSET_CONTAINER",
        "VFIO_GROUP_GET_DEVICE_FD",
    ),
    "device": tuple(name for name in vars(requests) if name.startswith("VFIO_DEVICE_")),
}
NAMES = {kind: {getattr(requests, name).number: name for name in names} for kind, names in _REQUESTS.items()}


def range_capability(*ranges: tuple[int, int], count: int | None = None, following: int = 0) -> bytes:
    """Make the capability that lists IOVA ranges."""
    head = struct.pack("=HHIII", lib.VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, 1, following, count or len(ranges), 0)
    return head + b"".join(struct.pack("=QQ", *each) for each in ranges)


def avail_capability(available: int) -> bytes:
    """Make the capability that says how many mappings are left."""
    return struct.pack("=HHII", lib.VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL, 1, 0, available)


class FakeKernel:
    """Nodes below ``/dev/vfio``, and who answers behind them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.failing: dict[str, int] = {}
        """By node or request: the errno that it fails with."""
        self.asked: list[str] = []
        """Names of the requests, as they came."""
        self.extensions = {int(lib.VFIO_TYPE1_IOMMU), int(lib.VFIO_TYPE1v2_IOMMU), int(lib.VFIO_UNMAP_ALL)}
        self.version = int(lib.VFIO_API_VERSION)
        self.viable = True
        self.in_container = False
        self.page_sizes = 0x1000
        self.chain = range_capability((0, 0xFEDF_FFFF), following=INFO_SIZE + 32) + avail_capability(7)
        self.mappings: dict[int, int] = {}
        self.short = 0
        """Bytes that unmaps leave out."""
        self.devices: dict[str, FakeDevice] = {}
        self.tokens: dict[str, str] = {}
        self._kinds: dict[int, str | FakeDevice] = {}
        self._open = os.open
        monkeypatch.setattr(os, "open", self.open)
        monkeypatch.setattr(ioctl, "system_call", self.system_call)
        monkeypatch.setattr(ioctl, "system_call_many", self.system_call_many)

    def open(self, path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        """Open a node, or any other file as ever."""
        if not str(path).startswith("/dev/vfio"):
            return self._open(path, flags, mode, dir_fd=dir_fd)
        if path in self.failing:
            raise OSError(self.failing[path], os.strerror(self.failing[path]), path)
        assert flags & os.O_CLOEXEC
        fd = os.memfd_create(path)
        self._kinds[os.fstat(fd).st_ino] = "container" if path == "/dev/vfio/vfio" else "group"
        return fd

    def system_call(self, fd: int, number: int, pointer: CData) -> int:
        """Answer one request."""
        behind = self._kinds[os.fstat(fd).st_ino]
        name = NAMES["device" if isinstance(behind, FakeDevice) else behind][number]
        self.asked.append(name)
        if name in self.failing:
            return -self.failing[name]
        if isinstance(behind, FakeDevice):
            return behind.ioctl(number, pointer)
        return (self._container if behind == "container" else self._group)(name, pointer)

    def system_call_many(self, fd: int, number: int, args: CData, stride: int, count: int, done: CData) -> int:
        """Answer one request after the other, until one fails."""
        start = ffi.cast("uint8_t *", args)
        for done[0] in range(count):
            result = self.system_call(fd, number, start + done[0] * stride)
            if result < 0:
                return result
        done[0] = count
        return 0

    def _container(self, name: str, pointer: CData) -> int:
        if name == "VFIO_GET_API_VERSION":
            return self.version
        if name == "VFIO_CHECK_EXTENSION":
            return int(int(ffi.cast("uintptr_t", pointer)) in self.extensions)
        if name == "VFIO_SET_IOMMU":
            return 0
        if name == "VFIO_IOMMU_GET_INFO":
            return self._info(ffi.cast("struct vfio_iommu_type1_info *", pointer))
        if name == "VFIO_IOMMU_MAP_DMA":
            asked = ffi.cast("struct vfio_iommu_type1_dma_map *", pointer)
            if any(asked.iova < iova + size and iova < asked.iova + asked.size for iova, size in self.mappings.items()):
                return -errno.EEXIST
            self.mappings[asked.iova] = asked.size
            return 0
        if name == "VFIO_IOMMU_UNMAP_DMA":
            return self._unmap(ffi.cast("struct vfio_iommu_type1_dma_unmap *", pointer))
        return -errno.ENOTTY

    def _info(self, reply: CData) -> int:
        reply.flags = lib.VFIO_IOMMU_INFO_PGSIZES
        reply.iova_pgsizes = self.page_sizes
        if self.chain:
            reply.flags |= lib.VFIO_IOMMU_INFO_CAPS
            if reply.argsz >= INFO_SIZE + len(self.chain):
                reply.cap_offset = INFO_SIZE
                ffi.memmove(ffi.cast("uint8_t *", reply) + INFO_SIZE, self.chain, len(self.chain))
            reply.argsz = INFO_SIZE + len(self.chain)
        return 0

    def _unmap(self, asked: CData) -> int:
        everything = asked.flags & lib.VFIO_DMA_UNMAP_FLAG_ALL
        if everything and int(lib.VFIO_UNMAP_ALL) not in self.extensions:
            return -errno.EINVAL
        end = 1 << 64 if everything else asked.iova + asked.size
        gone = [iova for iova in self.mappings if asked.iova <= iova < end]
        asked.size = sum(self.mappings.pop(iova) for iova in gone) - (self.short if gone else 0)
        return 0

    def _group(self, name: str, pointer: CData) -> int:
        if name == "VFIO_GROUP_GET_STATUS":
            flags = lib.VFIO_GROUP_FLAGS_VIABLE if self.viable else 0
            flags |= lib.VFIO_GROUP_FLAGS_CONTAINER_SET if self.in_container else 0
            ffi.cast("struct vfio_group_status *", pointer).flags = flags
            return 0
        if name in ("VFIO_GROUP_SET_CONTAINER", "VFIO_GROUP_UNSET_CONTAINER"):
            self.in_container = name == "VFIO_GROUP_SET_CONTAINER"
            return 0
        if name == "VFIO_GROUP_GET_DEVICE_FD":
            return self._open_device(ffi.string(ffi.cast("char *", pointer)).decode())
        return -errno.ENOTTY

    def _open_device(self, text: str) -> int:
        name, _, token = text.partition(" vf_token=")
        if name not in self.devices:
            return -errno.ENODEV
        if token != self.tokens.get(name, ""):
            return -errno.EACCES if name in self.tokens else -errno.EINVAL
        fd = self.devices[name].open()
        self._kinds[os.fstat(fd).st_ino] = self.devices[name]
        return fd

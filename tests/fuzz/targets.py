"""What is fed with hostile bytes: each target takes bytes, raises nothing but a `VfioError`, and checks what it got.

``tests/unit/test_hostile.py`` feeds them with hypothesis, ``python -m tests.fuzz`` with a coverage-guided fuzzer.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import struct
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import cast

from tests.fuzz.hostile import Bytes, hostile_kernel
from vfio_user._mmio import Window
from vfio_user._uapi import ffi
from vfio_user.addresses import IovaRange, PciAddress
from vfio_user.binding import record
from vfio_user.device import CORE_OPS, VfioDevice, info
from vfio_user.errors import IovaError, VfioError
from vfio_user.handover import unpack
from vfio_user.iommu import AddressSpace, IommuMode
from vfio_user.iommu.bitmap import DirtyBitmap
from vfio_user.iommu.container import Container
from vfio_user.iommu.iommufd import FaultQueue, Ioas, Iommufd, VeventQueue
from vfio_user.iommu.iova import IovaAllocator
from vfio_user.kernel import sysfs
from vfio_user.kernel.fd import OwnedFd
from vfio_user.kernel.ioctl import feature_get, feature_probe
from vfio_user.kernel.passing import receive
from vfio_user.kernel.uapi import FeatureOperation, HwInfoType
from vfio_user.pci import hot_reset_info
from vfio_user.pci.decode import decode
from vfio_user.pci.frozen import FrozenConfig

__all__ = ["SEEDS", "TARGETS", "run"]

Target = Callable[[Bytes], None]
PAGE = 4096
FEATURES = (
    "struct vfio_device_feature_migration",
    "struct vfio_device_feature_mig_state",
    "struct vfio_device_feature_mig_data_size",
    "struct vfio_device_feature_bus_master",
    "struct vfio_device_feature_dma_logging_control",
)
ADDRESS = "0000:01:00.0"
Window(4096).close()  # what the first window of a process sets up stays


def run(target: Target, data: bytes) -> bool:
    """Feed a target; tell whether it took the bytes for good."""
    try:
        target(Bytes(data))
    except VfioError:
        return False
    return True


def nothing() -> OwnedFd:
    return OwnedFd(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC), "hostile")


def device_info(source: Bytes) -> None:
    with nothing() as fd, hostile_kernel(source):
        said = info.device_info(fd.fileno(), ADDRESS)
    assert said.num_regions <= info.MAX_INDEXES
    assert said.num_irqs <= info.MAX_INDEXES


def region_info(source: Bytes) -> None:
    with nothing() as fd, hostile_kernel(source):
        said = info.region_info(fd.fileno(), 3, ADDRESS)
    assert said.index == 3
    assert said.file_offset + said.size < 1 << 63, "it can be read at every place"
    end = 0
    for area in said.mappable_areas:
        assert end <= area.offset < area.end <= said.size
        end = area.end


def irq_info(source: Bytes) -> None:
    with nothing() as fd, hostile_kernel(source):
        said = info.irq_info(fd.fileno(), 2, ADDRESS)
    assert said.index == 2
    assert said.count <= info.MAX_VECTORS


def container_info(source: Bytes) -> None:
    container = Container.__new__(Container)  # without asking for its version first
    container.mode = IommuMode.TYPE1V2
    with nothing() as container.fd, hostile_kernel(source):
        said = container.info()
    assert said.page_sizes > 0
    allocate(said.iova_ranges, said.page_sizes & -said.page_sizes)


def allocate(ranges: Iterable[IovaRange], page: int) -> None:
    """Use ranges that the kernel has named: what is allocated lies in them, and no two pieces overlap."""
    ranges = tuple(ranges)
    allocator = IovaAllocator(ranges, page)
    taken: list[int] = []
    with suppress(IovaError):
        for _ in range(4):
            taken.append(allocator.allocate(page))
    assert len(set(taken)) == len(taken)
    for iova in taken:
        assert iova % page == 0
        assert any(each.first <= iova for each in ranges)
        assert any(iova + page - 1 <= each.last for each in ranges)
        allocator.free(iova, page)


def ioas(source: Bytes) -> None:
    with nothing() as fd:
        space = Ioas(Iommufd(fd), 1)
        with hostile_kernel(source):
            said = space.ranges()
            allocate(said.ranges, max(said.alignment, PAGE))
            _, length = space.physical(0, 8192)
            assert 0 < length <= 8192


def hw_info(source: Bytes) -> None:
    kind = (None, *HwInfoType)[source.number(1 + len(HwInfoType))]
    with nothing() as fd, hostile_kernel(source):
        said = Iommufd(fd).hw_info(1, kind)
    assert (said.data is None) or said.kind in set(HwInfoType)
    assert repr(said)


def features(source: Bytes) -> None:
    with nothing() as fd, hostile_kernel(source):
        feature = source.number(16)
        if feature_probe(fd.fileno(), feature, FeatureOperation.GET):
            for ctype in FEATURES:
                reply = feature_get(fd.fileno(), feature, ctype)
                assert len(reply.raw) == ffi.sizeof(ctype)


class _NoSpace:
    """What a device needs of an address space when it is made: nothing."""

    def detach(self) -> None:
        """Take it as said."""


def device(source: Bytes) -> None:
    """Make a device of what the kernel says of it, and map its regions: they are never touched."""
    fd = OwnedFd(os.memfd_create("hostile"), "hostile")
    with hostile_kernel(source):
        vdev = VfioDevice("hostile", CORE_OPS, fd, cast("AddressSpace", _NoSpace()))
        try:
            assert len(vdev.regions) == vdev.info.num_regions
            assert all(each is None or each.size > 0 for each in vdev.regions)
        finally:
            vdev.close()
    assert fd.closed


def hot_reset(source: Bytes) -> None:
    with nothing() as fd, hostile_kernel(source):
        said = hot_reset_info.hot_reset_info(fd.fileno(), ADDRESS)
    addresses = [each.address for each in said.functions]
    assert addresses == sorted(set(addresses))


def hot_reset_bytes(source: Bytes) -> None:
    said = hot_reset_info.parse(source.rest())
    assert said.by_dev_id or not said.owned


def dirty_bitmap(source: Bytes) -> None:
    page, pages = PAGE << source.number(4), 1 + source.number(300)
    bitmap = DirtyBitmap(7 * page, pages * page, page)
    ffi.memmove(ffi.cast("uint8_t *", bitmap.address), source.take(bitmap.num_bytes), bitmap.num_bytes)
    ranges = list(bitmap.ranges())
    assert sum(each.size for each in ranges) == bitmap.count * page
    assert [*bitmap] == [iova for iova in range(7 * page, (7 + pages) * page, page) if iova in bitmap]
    assert all(one.last + 1 < other.first for one, other in itertools.pairwise(ranges))


def events(source: Bytes) -> None:
    reader, writer = os.pipe()
    with nothing() as fd, OwnedFd(reader, "events") as queue:
        size = source.number(64)
        faults = FaultQueue(Iommufd(fd), 1, queue)
        vevents = VeventQueue(Iommufd(fd), 1, queue, size)
        os.write(writer, source.rest()[: 1 << 12])
        os.close(writer)
        if size % 2:
            faults.read(0.0)
        else:
            assert all(len(each.data) in (0, size) for each in vevents.read(0.0))


def config_space(source: Bytes) -> None:
    size = (64, 256, 4096)[source.number(3)]
    config = FrozenConfig(source.take(size))
    offsets = [each.offset for each in config.capabilities()]
    offsets += [each.offset for each in config.extended_capabilities()]
    assert all(0 < offset < size for offset in offsets)
    for decoded in decode(config):
        assert json.dumps(decoded.to_json())


def sysfs_text(source: Bytes) -> None:
    names = ("vendor", "device", "class", "numa_node", "reset_method", "resource")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "bus/pci/devices" / ADDRESS
        folder.mkdir(parents=True)
        for each in names:
            (folder / each).write_bytes(source.take(source.number(40)))
        before, sysfs.SYSFS = sysfs.SYSFS, Path(name)
        try:
            function = sysfs.pci_function(ADDRESS)
            with suppress(VfioError):
                assert all(each.first < each.last for each in sysfs.memory_windows())
            assert (function.numa_node or 0) >= 0
            assert all(0 <= value < 1 << 64 for value in (function.vendor, function.device, function.class_code))
        finally:
            sysfs.SYSFS = before


def address(source: Bytes) -> None:
    parsed = PciAddress.parse(source.rest().decode("latin-1"))
    assert PciAddress.parse(str(parsed)) == parsed


def journal(source: Bytes) -> None:
    said = record.decode(source.rest().decode("utf-8", "replace"), "hostile")
    assert record.decode(record.encode(said), "again") == said
    for node in (*said.nodes, *said.before.nodes):
        assert node.path.startswith("/dev/vfio/")
        assert ".." not in node.path


def message(source: Bytes) -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        count = source.number(4)
        fds = b"".join(one.fileno().to_bytes(4, sys.byteorder) for _ in range(count))
        one.sendmsg([source.rest()[:60000]], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if count else [])
        fields, files = receive(other)
        parcel = unpack(fields, files)
        assert list(parcel.files) == list(files)
        parcel.close()


TARGETS: dict[str, Target] = {
    each.__name__: each
    for each in (
        address,
        config_space,
        container_info,
        device,
        device_info,
        dirty_bitmap,
        events,
        features,
        hot_reset,
        hot_reset_bytes,
        hw_info,
        ioas,
        irq_info,
        journal,
        message,
        region_info,
        sysfs_text,
    )
}

_STATE: dict[str, object] = {"driver": "nvme", "module": "nvme", "override": None, "numvfs": 0, "nodes": []}
_NODE = {"path": "/dev/vfio/7", "uid": 0, "gid": 0, "mode": 384}
_RECORD = {
    "version": 1,
    "address": ADDRESS,
    "vendor": 1,
    "device": 2,
    "boot": "a-b",
    "before": _STATE,
    "driver": "vfio-pci",
    "earlier": [],
    "nodes": [_NODE],
    "complete": True,
}
_PARCEL = {"mode": "type1v2", "ioas": 0, "groups": [7], "devices": [{"address": ADDRESS, "id": 0}]}


def _grown(size: int, reply: bytes) -> bytes:
    """Make what a kernel says that first asks for more room than a structure of that size, and then replies."""
    total = struct.pack("=I", 4 + len(reply))
    return b"\1" + total.ljust(size, b"\0") + b"\0" + total + reply


_AREAS = struct.pack("=HHIII4Q", 1, 1, 0, 2, 0, 0, PAGE, 2 * PAGE, PAGE)
_REGION = _grown(32, struct.pack("=IIIQQ", 0xF, 3, 32, 16 * PAGE, 0) + _AREAS)
_RANGES = struct.pack("=HHIII4Q", 1, 1, 72, 2, 0, PAGE, 9 * PAGE, 16 * PAGE, 99 * PAGE)
_CONTAINER = _grown(24, struct.pack("=IQII", 3, PAGE, 24, 0) + _RANGES + struct.pack("=HHII", 3, 1, 0, 65535))
_DEVICE = _grown(24, struct.pack("=IIIII", 0x82, 9, 5, 24, 0) + struct.pack("=HHIQ", 1, 1, 0, 0))
_SLOT = struct.pack("=BIII", 0, 12 + 16, 0, 2) + struct.pack("=IHBBIHBB", 7, 0, 1, 0, 7, 0, 1, 1)
_IOAS = struct.pack("=4Q", 0, 9 * PAGE, 16 * PAGE, 99 * PAGE).ljust(256, b"\0")
_ATTRIBUTES = (b"0x1234", b"0x11e8", b"0x010802", b"-1", b"flr bus", b"0xfe000000 0xfe000fff 0x40200")
_PHYSICAL = struct.pack("=IIIIQQQ", 40, 0, 1, 0, 0, PAGE, PAGE)
_HW = struct.pack("=IIQQ", 0, 0, 1, 2).ljust(64, b"\0") + struct.pack("=IIIIQIIQ", 40, 0, 1, 24, 0, 1, 0, 0)
_CONFIG = struct.pack("<16I", 0x11E81234, 0x100007, *(0,) * 11, 0x40, 0, 0) + struct.pack("<3I", 0x00005011, 1, 0)
#: Where the fuzzer begins, for what has too much form to be found by chance.
SEEDS: dict[str, tuple[bytes, ...]] = {
    "config_space": (b"\1\0" + _CONFIG, b"\2\0" + _CONFIG.ljust(256, b"\0") + struct.pack("<2I", 0x14010001, 0)),
    "container_info": (_CONTAINER,),
    "device_info": (_DEVICE,),
    "device": (_DEVICE + _REGION * 2, _DEVICE.replace(b"\x09", b"\x01") + _REGION),
    "dirty_bitmap": (b"\0\0\x80\0" + b"\xf0\x0f" * 8,),
    "hot_reset": (_SLOT,),
    "hot_reset_bytes": (_SLOT[1:],),
    "hw_info": (b"\0\0\0" + _HW,),
    "ioas": (b"\0" + _IOAS + struct.pack("=IIIIQQ", 32, 1, 2, 0, 0, PAGE) + b"\0" + _PHYSICAL,),
    "region_info": (_REGION,),
    "address": (b"0000:01:00.0", b"pci-0000:01:00.0-nvme-1", b"1234:11e8", b"/sys/bus/pci/devices/0000:01:00.0"),
    "journal": (json.dumps(_RECORD).encode(),),
    "message": (b"\3\0" + json.dumps(_PARCEL).encode(),),
    "sysfs_text": (b"".join(bytes((len(each), 0)) + each for each in _ATTRIBUTES),),
}

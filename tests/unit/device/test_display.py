"""Displays and monitors that tell nonsense."""

from __future__ import annotations

import dataclasses
import errno
import os
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

import vfio_user
from tests.guest.leaks import nothing_left
from tests.unit.conftest import ADDRESS
from tests.unit.fake_device import READ_WRITE, FakeDevice
from tests.unit.fake_kernel import FakeKernel
from tests.unit.fake_sysfs import FakeSysfs
from vfio_user import PciDevice
from vfio_user._uapi import ffi, lib
from vfio_user.device.display import DrmPlane, Plane
from vfio_user.device.edid import EdidRegion
from vfio_user.device.kinds import kind_name, vendor_type
from vfio_user.errors import BoundsError, MalformedReplyError, UnsupportedError, VfioIoctlError
from vfio_user.kernel import ioctl
from vfio_user.kernel.ioctl import requests
from vfio_user.kernel.uapi import GfxPlaneType, RegionType
from vfio_user.mdev import MDEV_OPS

if TYPE_CHECKING:
    from vfio_user._uapi import CData

TYPE = int(lib.VFIO_REGION_INFO_CAP_TYPE)
EDID_INDEX = 9


class FakeDisplay(FakeDevice):
    """A device that says of its planes what a test wants."""

    def __init__(self, kind: GfxPlaneType) -> None:
        super().__init__()
        self.kind = kind
        self.plane = {"drm_format": 0x34325258, "width": 16, "height": 4, "stride": 64, "size": 256, "region_index": 0}
        self.dma_buf = os.memfd_create("plane")
        os.ftruncate(self.dma_buf, 4096)

    def ioctl(self, number: int, pointer: CData) -> int:
        """Answer one request."""
        if number == requests.VFIO_DEVICE_QUERY_GFX_PLANE.number:
            reply = ffi.cast("struct vfio_device_gfx_plane_info *", pointer)
            if reply.flags & ~lib.VFIO_GFX_PLANE_TYPE_PROBE != self.kind:
                return -errno.EINVAL
            if not reply.flags & lib.VFIO_GFX_PLANE_TYPE_PROBE and reply.drm_plane_type == DrmPlane.PRIMARY:
                for name, value in self.plane.items():
                    setattr(reply, name, value)
            return 0
        if number == requests.VFIO_DEVICE_GET_GFX_DMABUF.number:
            return os.dup(self.dma_buf) if ffi.cast("uint32_t *", pointer)[0] == 0 else -errno.ENOENT
        return super().ioctl(number, pointer)

    def close(self) -> None:
        """Take the device out of the machine."""
        os.close(self.dma_buf)
        super().close()


@pytest.fixture(params=[GfxPlaneType.REGION, GfxPlaneType.DMABUF])
def fake(request: pytest.FixtureRequest, kernel: FakeKernel, tree: FakeSysfs) -> Iterator[FakeDisplay]:
    tree.add(ADDRESS, driver="vfio-pci", group=7)
    device = FakeDisplay(request.param)
    kernel.devices[ADDRESS] = device
    yield device
    device.close()


def opened(ops: vfio_user.DeviceOps = vfio_user.PCI_OPS) -> PciDevice:
    return vfio_user.open(ADDRESS, mode="type1v2", ops=ops)


def test_what_is_shown(fake: FakeDisplay) -> None:
    with nothing_left(), opened() as pci:
        display = pci.vdev.display
        assert display.kind is fake.kind
        assert display.plane() == Plane(fake.kind, "XR24", 0, 16, 4, 64, 256, (0, 0), (0, 0), 0)
        assert display.plane(DrmPlane.CURSOR) is None
        fake.plane["width"] = 0
        assert display.plane() is None


def test_picture(fake: FakeDisplay, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.write(0, 0, b"region")
    os.pwrite(fake.dma_buf, b"dmabuf", 0)
    synced, before = [], ioctl.system_call

    def answer(fd: int, number: int, pointer: CData) -> int:
        if number != 0x40086200:  # DMA_BUF_IOCTL_SYNC
            return before(fd, number, pointer)
        assert os.path.sameopenfile(fd, fake.dma_buf)
        synced.append(int(ffi.cast("uint64_t *", pointer)[0]))
        return 0

    monkeypatch.setattr(ioctl, "system_call", answer)
    with opened() as pci, nothing_left():
        plane = pci.vdev.display.plane()
        assert plane is not None
        with pci.vdev.display.mapped(plane) as pixels:
            assert len(pixels) == 256
            assert pixels.readonly
            assert bytes(pixels[:6]) == (b"region" if fake.kind is GfxPlaneType.REGION else b"dmabuf")
        with pytest.raises(ValueError, match="released"):
            pixels[0]
    assert synced == ([1, 5] if fake.kind is GfxPlaneType.DMABUF else []), "begin and end of reading"


def test_dma_buf_that_nobody_may_map(fake: FakeDisplay) -> None:
    os.close(fake.dma_buf)
    fake.dma_buf = os.open("/dev/full", os.O_WRONLY)
    with opened() as pci, nothing_left():
        plane = pci.vdev.display.plane()
        assert plane is not None
        if fake.kind is GfxPlaneType.DMABUF:
            with pytest.raises(UnsupportedError, match="can't be mapped by a process"), pci.vdev.display.mapped(plane):
                pass
        else:
            with pytest.raises(UnsupportedError, match="are in a region"):
                pci.vdev.display.dma_buf(plane)


def test_picture_larger_than_its_memory(fake: FakeDisplay) -> None:
    with opened() as pci:
        for nonsense in ({"height": 5}, {"stride": 0xFFFFFFFF, "height": 0xFFFFFFFF}, {"size": 0}):
            fake.plane = {**fake.plane, **nonsense}
            with pytest.raises(MalformedReplyError, match="do not fit a plane of"):
                pci.vdev.display.plane()


def test_region_that_is_not_there(fake: FakeDisplay) -> None:
    fake.plane["region_index"] = 77
    with opened() as pci:
        plane = pci.vdev.display.plane()
        assert plane is not None
        kind = BoundsError if fake.kind is GfxPlaneType.REGION else VfioIoctlError
        with pytest.raises(kind), pci.vdev.display.mapped(plane):
            pass


def test_region_that_is_too_small(fake: FakeDisplay) -> None:
    fake.plane |= {"height": 0x100, "size": 0x4000}
    with opened() as pci, nothing_left():
        plane = pci.vdev.display.plane()
        assert plane is not None
        with pytest.raises((BoundsError, MalformedReplyError)), pci.vdev.display.mapped(plane):
            pass


def test_region_that_is_not_counted(fake: FakeDisplay) -> None:
    fake.plane["region_index"] = 12
    fake.regions[12] = (0x1000, READ_WRITE)
    ops = dataclasses.replace(vfio_user.PCI_OPS, region_indexes=MDEV_OPS.region_indexes)
    with opened(ops) as pci:
        expected = [0, 7, 12] if fake.kind is GfxPlaneType.REGION else [0, 7]
        assert [each.index for each in pci.vdev.regions if each is not None] == expected
    fake.plane["region_index"] = 0xFFFFFFFF
    if fake.kind is GfxPlaneType.REGION:
        with nothing_left(), pytest.raises(MalformedReplyError, match="in region 4294967295, which can't be"):
            opened(ops)


def edid_of(fake: FakeDisplay, size: int, *registers: int) -> None:
    fake.num_regions = EDID_INDEX + 1
    fake.regions[EDID_INDEX] = (size, READ_WRITE)
    fake.capabilities[EDID_INDEX] = struct.pack("=HHIII", TYPE, 1, 0, RegionType.GFX, 1)
    os.ftruncate(fake.file, fake.num_regions << 40)
    fake.write(EDID_INDEX, 0, struct.pack("=6I", *registers))


@pytest.mark.parametrize("fake", [GfxPlaneType.REGION], indirect=True)
@pytest.mark.parametrize(
    ("size", "registers", "words"),
    [
        (16, (), "it can't hold an EDID's registers"),
        (4096, (4096, 1, 0, 0, 0, 1), "has an EDID of 0x1 at 0x1000"),
        (4096, (24, 0xFFFFFFFF, 0, 0, 0, 1), "has an EDID of 0xffffffff at 0x18"),
        (4096, (0, 128, 0, 0, 0, 1), "has an EDID of 0x80 at 0x0"),
    ],
)
def test_monitor_that_does_not_fit(fake: FakeDisplay, size: int, registers: tuple[int, ...], words: str) -> None:
    edid_of(fake, size, *(registers or (0,) * 6))
    with opened() as pci, pytest.raises(MalformedReplyError, match=words):
        pci.vdev.display.monitor  # noqa: B018


@pytest.mark.parametrize("fake", [GfxPlaneType.REGION], indirect=True)
def test_monitor_that_is_longer_than_it_can_be(fake: FakeDisplay) -> None:
    edid_of(fake, 4096, 2048, 256, 257, 0, 600, 2)
    with opened() as pci:
        monitor = pci.vdev.display.monitor
        assert isinstance(monitor, EdidRegion)
        assert (monitor.connected, monitor.max_resolution) == (False, None)
        with pytest.raises(MalformedReplyError, match="an EDID of 257 bytes, of 256 at most"):
            monitor.edid  # noqa: B018


def test_device_without(device: FakeDevice) -> None:
    with opened() as pci:
        with pytest.raises(UnsupportedError, match="has no display"):
            pci.vdev.display  # noqa: B018
        with pytest.raises(UnsupportedError, match="no region 'IGD OpRegion'; of such it has: none"):
            pci.vdev.find_region(vendor_type(0x8086), 1)


def test_typed_regions_are_told_apart(fake: FakeDisplay) -> None:
    edid_of(fake, 4096, *(0,) * 6)
    with opened() as pci:
        assert pci.vdev.find_region(RegionType.GFX, 1).index == EDID_INDEX
        with pytest.raises(UnsupportedError, match=r"no region 'type 0x1/0x2'; of such it has: monitor \(EDID\)"):
            pci.vdev.find_region(RegionType.GFX, 2)


def test_names_of_regions() -> None:
    assert kind_name(RegionType.CCW, 3) == "channel report words"
    assert kind_name(vendor_type(0x8086), 2) == "IGD host bridge"
    assert kind_name(vendor_type(0x1AF4), 9) == "vendor 1af4 region 9"
    assert kind_name(7, 1) == "type 0x7/0x1"

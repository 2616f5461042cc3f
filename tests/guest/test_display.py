"""Virtual displays on the kernel's samples: mdpy shows a region, mbochs shows dma-bufs and takes a monitor."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import vfio_user
from tests.guest.leaks import nothing_left
from vfio_user import MdevDevice, testing
from vfio_user.device.display import Display, DrmPlane, Plane
from vfio_user.errors import ArgumentError, BoundsError, UnsupportedError, VfioIoctlError
from vfio_user.kernel.uapi import GfxPlaneType, RegionType
from vfio_user.mdev import Mdev, mdev_parent

WIDTH, HEIGHT, STRIDE = 640, 480, 2560
EDID = bytes.fromhex("00ffffffffffff00") + bytes(range(120))
XRES, YRES, BPP, ENABLE, Y_OFFSET = (0x500 + 2 * index for index in (1, 2, 3, 4, 9))


@pytest.fixture(scope="module")
def mdpy() -> Iterator[Mdev]:
    made = mdev_parent("mdpy").type("vga").create()
    yield made
    made.remove()


@pytest.fixture(scope="module")
def mbochs() -> Iterator[Mdev]:
    made = mdev_parent("mbochs").type("small").create()
    yield made
    made.remove()


def shown(display: Display) -> Plane:
    """Ask until there is an answer, as one does for each picture: mbochs has no memory for a new mode at first."""
    for _ in range(3):
        try:
            plane = display.plane()
        except VfioIoctlError as error:
            if error.errno != errno.ENOMEM:
                raise
        else:
            assert plane is not None
            return plane
    raise AssertionError("it shows nothing")


def set_mode(device: MdevDevice, y_offset: int = 0) -> None:
    registers = device.pci.bar(2)
    for offset, value in ((XRES, WIDTH), (YRES, HEIGHT), (BPP, 32), (Y_OFFSET, y_offset), (ENABLE, 1)):
        registers.write16(offset, value)


def test_region(mdpy: Mdev, iommu_mode: str) -> None:
    with nothing_left(), vfio_user.open_mdev(mdpy, mode=iommu_mode) as device:
        device.reset()
        display = device.vdev.display
        assert display.kind is GfxPlaneType.REGION
        plane = display.plane()
        assert plane is not None
        assert (plane.format, plane.width, plane.height, plane.stride) == ("XR24", WIDTH, HEIGHT, STRIDE)
        assert plane.handle >= device.vdev.info.num_regions, "it does not count it among its regions"
        with display.mapped(plane) as pixels:
            assert len(pixels) == STRIDE * HEIGHT
            rows = [pixels[row * STRIDE] for row in range(0, HEIGHT, 60)]
            assert rows == [row * 255 // HEIGHT for row in range(0, HEIGHT, 60)], "the picture after a reset"
            device.pci.bar(0).write32(0, 0x00C0FFEE)
            assert pixels[:4].tobytes() == bytes.fromhex("eeffc000")
            with pytest.raises(TypeError):
                pixels[0] = 1
        with pytest.raises(UnsupportedError, match="are in a region"):
            display.dma_buf(plane)
        with pytest.raises(UnsupportedError, match=r"no region 'monitor \(EDID\)'; of such it has: none"):
            display.monitor  # noqa: B018
        device.reset()
        with display.mapped(plane) as pixels:
            assert pixels[0] == 0


def test_dma_buf(mbochs: Mdev, iommu_mode: str) -> None:
    with nothing_left(), vfio_user.open_mdev(mbochs, mode=iommu_mode) as device:
        display = device.vdev.display
        assert display.kind is GfxPlaneType.DMABUF
        device.pci.bar(2).write16(ENABLE, 0)
        assert display.plane() is None, "it is switched off"
        set_mode(device)
        plane = shown(display)
        assert (plane.format, plane.width, plane.height, plane.stride) == ("XR24", WIDTH, HEIGHT, STRIDE)
        assert display.plane(DrmPlane.CURSOR) is None
        for _ in range(2):
            with display.dma_buf(plane) as file:
                assert os.lseek(file.fileno(), 0, os.SEEK_END) == STRIDE * HEIGHT
                facts = Path(f"/proc/self/fdinfo/{file.fileno()}").read_text()
                assert "exp_name:\tmbochs\n" in facts
        # mbochs exports them read-only, and maps them only where they could be written.
        refused = pytest.raises(UnsupportedError, match=r"can't be mapped by a process .*: its driver lets none")
        with refused, display.mapped(plane):
            pass
        assert shown(display) == plane, "the same picture is the same dma-buf"
        set_mode(device, y_offset=8)
        assert shown(display).handle != plane.handle, "one that begins elsewhere is another"
        with pytest.raises(VfioIoctlError) as caught:
            display.dma_buf(Plane(plane.kind, "XR24", 0, 64, 64, 256, 1 << 14, (0, 0), (0, 0), 4711))
        assert caught.value.errno == errno.ENOENT


def test_monitor(mbochs: Mdev) -> None:
    with nothing_left(), vfio_user.open_mdev(mbochs) as device:
        region = device.vdev.find_region(RegionType.GFX, 1)
        assert region.index == device.vdev.info.num_regions - 1
        assert region.info.type == (RegionType.GFX, 1)
        monitor = device.vdev.display.monitor
        assert (monitor.max_size, monitor.max_resolution) == (0x400, (800, 600))
        monitor.connect(EDID)
        states = [monitor.connected]
        assert monitor.edid == EDID
        registers = device.pci.bar(2)
        seen = b"".join(registers.pread(offset, 4) for offset in range(0, len(EDID), 4))
        assert seen == EDID, "what the display's driver reads"
        monitor.disconnect()
        states.append(monitor.connected)
        assert states == [True, False]
        assert registers.pread(0, 4) == bytes(4)
        for wrong in (b"", EDID[:-1], bytes(128)):
            with pytest.raises(ArgumentError, match="are no EDID"):
                monitor.connect(wrong)
        with pytest.raises(BoundsError, match="has 1152 bytes"):
            monitor.connect(EDID * 9)
        monitor.connect(EDID * 8)
        assert monitor.edid == EDID * 8


def test_no_display() -> None:
    with vfio_user.open(testing.device("edu").address) as pci:
        with pytest.raises(UnsupportedError, match="has no display"):
            pci.vdev.display  # noqa: B018
        with pytest.raises(UnsupportedError, match=r"no region 'monitor \(EDID\)'; of such it has: none"):
            pci.vdev.find_region(RegionType.GFX, 1)

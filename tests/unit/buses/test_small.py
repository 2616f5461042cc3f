"""Buses that no emulator has, and what the others do without their guests: opened on a fake kernel."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import vfio_user
from tests.guest.leaks import nothing_left
from tests.unit.fake_device import FIXED, LEVEL, MAPPABLE, READ_WRITE, FakeDevice
from tests.unit.fake_kernel import FakeKernel
from tests.unit.fake_sysfs import FakeSysfs
from vfio_user import AmbaDevice, CdxDevice, FslMcDevice, PlatformDevice, container_of
from vfio_user._uapi import ffi, lib
from vfio_user.binding import files, lent
from vfio_user.cdx import CdxNode
from vfio_user.errors import ArgumentError, BindError, BoundsError, InUseError, UnsupportedError
from vfio_user.fsl_mc import FslMcNode
from vfio_user.kernel import writes
from vfio_user.kernel.ioctl import requests
from vfio_user.platform import AmbaNode, PlatformNode

GROUP = 5
RESET = int(lib.VFIO_DEVICE_FLAGS_RESET)
#: Bus, name of a device, VFIO's driver, flag of the uAPI, and what opens it.
BUSES: list[tuple[str, str, str, int, Callable[..., Any], type[Any]]] = [
    (
        "platform",
        "a000000.virtio_mmio",
        "vfio-platform",
        int(lib.VFIO_DEVICE_FLAGS_PLATFORM),
        vfio_user.open_platform,
        PlatformDevice,
    ),
    ("amba", "9010000.pl031", "vfio-amba", int(lib.VFIO_DEVICE_FLAGS_AMBA), vfio_user.open_amba, AmbaDevice),
    ("fsl-mc", "dpni.3", "vfio-fsl-mc", int(lib.VFIO_DEVICE_FLAGS_FSL_MC), vfio_user.open_fsl_mc, FslMcDevice),
    ("cdx", "cdx-00:01", "vfio-cdx", int(lib.VFIO_DEVICE_FLAGS_CDX), vfio_user.open_cdx, CdxDevice),
]


def add(tree: FakeSysfs, bus: str, name: str, driver: str | None = None) -> Path:
    """Add a device of a bus, with a group of its own."""
    path = tree.root / "bus" / bus / "devices" / name
    members = tree.root / "kernel/iommu_groups" / str(GROUP) / "devices"
    for folder in (path, members):
        folder.mkdir(parents=True, exist_ok=True)
    (members / name).symlink_to(path)
    (path / "iommu_group").symlink_to(members.parent)
    if driver is not None:
        folder = tree.root / "bus" / bus / "drivers" / driver
        folder.mkdir(parents=True)
        (path / "driver").symlink_to(folder)
    return path


@pytest.fixture
def fake(kernel: FakeKernel) -> Iterator[FakeDevice]:
    """A device of two regions and two interrupts, one of them a level."""
    device = FakeDevice()
    device.regions = {0: (0x1000, MAPPABLE), 1: (0x200, READ_WRITE)}
    device.irqs = {0: (1, LEVEL), 1: (4, FIXED)}
    device.num_regions = device.num_irqs = 2
    yield device
    device.close()


@pytest.mark.parametrize(("bus", "name", "driver", "flag", "opener", "kind"), BUSES, ids=[row[0] for row in BUSES])
def test_regions_interrupts_and_reset(
    tree: FakeSysfs,
    kernel: FakeKernel,
    fake: FakeDevice,
    bus: str,
    name: str,
    driver: str,
    flag: int,
    opener: Callable[..., Any],
    kind: type[Any],
) -> None:
    add(tree, bus, name, driver)
    fake.flags, kernel.devices[name] = flag | RESET, fake
    fake.write(0, 0x10, b"\x12\x34\x56\x78")
    fake.write(1, 0x20, b"\xab\xcd")
    with nothing_left(), opener(name, mode="type1v2") as device:
        assert isinstance(device, kind)
        assert container_of(device.vdev, kind.vdev) is device
        assert int(device.vdev.info.flags) & flag
        assert [each.size for each in device.regions] == [0x1000, 0x200]
        assert device.region(0).read32(0x10) == 0x78563412
        assert device.region(1).pread(0x20, 2) == b"\xab\xcd"
        with pytest.raises(BoundsError):
            device.region(2)
        with device.irq(1).enable(3) as vectors:
            device.irq(1).trigger(2)
            assert vectors[2].wait(5) == 1
        with pytest.raises(UnsupportedError, match=r"has no interrupt 2; it has 2"):
            device.irq(2)
        device.reset()
        assert fake.resets == 1
        assert driver in repr(device.vdev)


@pytest.mark.parametrize(("bus", "name", "driver", "flag", "opener", "kind"), BUSES, ids=[row[0] for row in BUSES])
def test_what_is_not_bound_is_not_opened(
    tree: FakeSysfs,
    kernel: FakeKernel,
    bus: str,
    name: str,
    driver: str,
    flag: int,
    opener: Callable[..., Any],
    kind: type[Any],
) -> None:
    with pytest.raises(ArgumentError, match=rf"ls /sys/bus/{bus}/devices"):
        opener(name)
    add(tree, bus, name)
    with pytest.raises(UnsupportedError, match=rf"not bound to {driver} \(driver: none\)"):
        opener(name)


def test_a_device_without_a_reset_function(tree: FakeSysfs, kernel: FakeKernel, fake: FakeDevice) -> None:
    name = "9010000.pl031"
    add(tree, "amba", name, "vfio-amba")
    fake.flags, kernel.devices[name] = int(lib.VFIO_DEVICE_FLAGS_AMBA), fake
    with vfio_user.open_amba(name, mode="type1v2") as amba:
        with pytest.raises(UnsupportedError, match=r"no reset function"):
            amba.reset()
        assert fake.resets == 0


def test_what_sysfs_says(tree: FakeSysfs) -> None:
    amba = add(tree, "amba", "9010000.pl031")
    (amba / "id").write_text("00041031\n")
    (amba / "of_node").mkdir()
    (amba / "of_node/compatible").write_bytes(b"arm,pl031\0arm,primecell\0")
    assert AmbaNode.all() == (AmbaNode("9010000.pl031"),)
    assert AmbaNode.find("9010000.pl031").peripheral_id == 0x41031
    assert AmbaNode.find("9010000.pl031").compatible == ("arm,pl031", "arm,primecell")
    (amba / "id").write_text("?\n")
    assert AmbaNode("9010000.pl031").peripheral_id is None
    assert PlatformNode.all() == ()
    assert FslMcNode("dprc.2").kind == "dprc"
    cdx = add(tree, "cdx", "cdx-00:01")
    (cdx / "vendor").write_text("0x10ee\n")
    assert (CdxNode("cdx-00:01").vendor, CdxNode("cdx-00:01").device) == (0x10EE, None)
    for wrong in ("", ".", "..", "a/b"):
        with pytest.raises(ArgumentError):
            CdxNode.find(wrong)


def test_bus_mastering_of_cdx_is_a_feature(
    tree: FakeSysfs, kernel: FakeKernel, fake: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "cdx-00:01"
    add(tree, "cdx", name, "vfio-cdx")
    fake.flags, kernel.devices[name] = int(lib.VFIO_DEVICE_FLAGS_CDX), fake
    asked: list[tuple[int, int]] = []
    answer = fake.ioctl

    def ioctl(number: int, pointer: Any) -> int:
        if number != requests.VFIO_DEVICE_FEATURE.number:
            return answer(number, pointer)
        head = ffi.cast("struct vfio_device_feature *", pointer)
        body = ffi.cast("struct vfio_device_feature_bus_master *", ffi.cast("uint8_t *", pointer) + 8)
        asked.append((int(head.flags), int(body.op)))
        return 0

    with vfio_user.open_cdx(name, mode="type1v2") as cdx:
        with pytest.raises(UnsupportedError, match=r"BUS_MASTER"):
            cdx.set_master(True)
        monkeypatch.setattr(fake, "ioctl", ioctl)
        cdx.set_master(True)
        cdx.set_master(False)
    flags = lib.VFIO_DEVICE_FEATURE_SET | lib.VFIO_DEVICE_FEATURE_BUS_MASTER
    assert asked == [(flags, lib.VFIO_DEVICE_FEATURE_SET_MASTER), (flags, lib.VFIO_DEVICE_FEATURE_CLEAR_MASTER)]


class Bus:
    """Takes what is written to a device's attributes into effect, as the driver core does."""

    def __init__(self, tree: FakeSysfs, refusal: int = 0) -> None:
        self.tree, self.refusal, self.log = tree, refusal, list[str]()

    def write(self, path: Path, text: str, deadline: float) -> None:
        self.log.append(f"{path.name} {text.strip()}")
        if path.name == "driver_override":
            path.write_text(text)
        elif path.name == "unbind":
            path.parent.unlink()
        elif path.name == "bind":
            if self.refusal and "vfio" in path.parent.name:
                raise vfio_user.errors.VfioOSError(self.refusal, "write")
            (path.parents[2] / "devices" / text / "driver").symlink_to(path.parent)


def test_a_device_is_lent_and_given_back(tree: FakeSysfs, monkeypatch: pytest.MonkeyPatch) -> None:
    add(tree, "amba", "9010000.pl031", "rtc-pl031")
    (tree.root / "bus/amba/drivers/vfio-amba").mkdir()
    bus = Bus(tree)
    monkeypatch.setattr(writes, "write", bus.write)
    node = AmbaNode("9010000.pl031")
    with lent(node):
        assert node.driver == "vfio-amba"
    assert AmbaNode("9010000.pl031").driver == "rtc-pl031"
    assert bus.log[-1] == "driver_override "


def test_a_device_in_use_is_not_lent(tree: FakeSysfs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver of a share waits until it is not mounted any more: taking it away would hang."""
    share = add(tree, "platform", "a003e00.virtio_mmio", "virtio-mmio") / "virtio3"
    share.mkdir()
    (share / "mount_tag").write_text("folder\0\n")
    (tree.root / "bus/virtio/devices").mkdir(parents=True)
    (tree.root / "bus/virtio/devices/virtio3").symlink_to(share)
    (tree.root / "bus/platform/drivers/vfio-platform").mkdir()
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text(
        "30 1 0:23 / /home/me rw - 9p folder rw\n31 1 0:24 / / rw - 9p other rw\n"
    )
    monkeypatch.setattr(files, "PROC", tmp_path / "proc")
    monkeypatch.setattr(writes, "write", Bus(tree).write)
    node = PlatformNode("a003e00.virtio_mmio")
    with (
        pytest.raises(InUseError, match=r"in use: the share folder is mounted at /home/me.*--force-in-use share"),
        lent(node),
    ):
        raise AssertionError("lent")
    assert node.driver == "virtio-mmio"
    with lent(node, force_in_use=["share"]):
        assert node.driver == "vfio-platform"
    assert node.driver == "virtio-mmio"
    (tmp_path / "proc/self/mountinfo").write_text("")
    with lent(node):
        assert node.driver == "vfio-platform"


@pytest.mark.parametrize(
    ("code", "reason"), [(errno.EINVAL, r"Invalid argument"), (errno.ENODEV, r"dmesg may say more")]
)
def test_a_refused_loan_leaves_the_device_as_it_was(
    tree: FakeSysfs, monkeypatch: pytest.MonkeyPatch, code: int, reason: str
) -> None:
    add(tree, "amba", "9010000.pl031", "rtc-pl031")
    (tree.root / "bus/amba/drivers/vfio-amba").mkdir()
    monkeypatch.setattr(writes, "write", Bus(tree, code).write)
    with pytest.raises(BindError, match=reason), lent(AmbaNode("9010000.pl031")):
        raise AssertionError("lent")
    assert AmbaNode("9010000.pl031").driver == "rtc-pl031"


def test_what_can_not_be_lent(tree: FakeSysfs) -> None:
    add(tree, "usb", "1-1")

    class Usb(AmbaNode):
        on_bus = "usb"

    with pytest.raises(ArgumentError, match=r"on the bus usb"), lent(Usb("1-1")):
        raise AssertionError("lent")
    add(tree, "amba", "9010000.pl031")
    with pytest.raises(BindError, match=r"has no driver vfio-amba"), lent(AmbaNode("9010000.pl031")):
        raise AssertionError("lent")

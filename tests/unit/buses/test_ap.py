"""The AP matrix: queues, what is assigned, and that it opens for a virtual machine only."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

import vfio_user
from tests.guest.leaks import nothing_left
from tests.unit.fake_device import FIXED, FakeDevice
from tests.unit.fake_kernel import FakeKernel
from tests.unit.fake_sysfs import FakeSysfs
from vfio_user import ApDevice, ap, container_of
from vfio_user._uapi import lib
from vfio_user.ap import ApMdev, ApQueue, KvmVm
from vfio_user.errors import ArgumentError, BoundsError, MalformedReplyError, UnsupportedError, VfioOSError
from vfio_user.kernel import writes
from vfio_user.kernel.uapi import ApIrq, DeviceFlags

UUID = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"
GROUP = 9
TYPE = "vfio_ap-passthrough"


@pytest.fixture
def matrix(tree: FakeSysfs) -> Path:
    """A machine with a matrix."""
    folder = tree.root / "devices/vfio_ap/matrix"
    kind = folder / "mdev_supported_types" / TYPE
    (kind / "devices").mkdir(parents=True)
    (kind / "device_api").write_text("vfio-ap\n")
    (kind / "available_instances").write_text("65536\n")
    return folder


@pytest.fixture
def instance(matrix: Path, tree: FakeSysfs) -> Path:
    """A mediated device of it."""
    path = matrix / UUID
    members = tree.root / "kernel/iommu_groups" / str(GROUP) / "devices"
    for folder in (path, members, tree.root / "bus/mdev/devices", tree.root / "bus/mdev/drivers/vfio_ap_mdev"):
        folder.mkdir(parents=True)
    (path / "mdev_type").symlink_to(matrix / "mdev_supported_types" / TYPE)
    (path / "iommu_group").symlink_to(members.parent)
    (path / "driver").symlink_to(tree.root / "bus/mdev/drivers/vfio_ap_mdev")
    for links in (tree.root / "bus/mdev/devices", members):
        (links / UUID).symlink_to(path)
    return path


class FakeKvm:
    """KVM, as far as it knows VFIO files."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, node: bool = True) -> None:
        self.files: list[int] = []
        self._node = node
        self._open = os.open
        monkeypatch.setattr(os, "open", self.open)
        monkeypatch.setattr(fcntl, "ioctl", self.ioctl)

    def open(self, path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if path != "/dev/kvm":
            return self._open(path, flags, mode, dir_fd=dir_fd)
        if not self._node:
            raise OSError(errno.ENOENT, "No such file or directory", path)
        return os.memfd_create("kvm", os.MFD_CLOEXEC)

    def ioctl(self, fd: int, number: int, argument: bytearray | int) -> int:
        if number == 0xAE01:
            return os.memfd_create("vm", os.MFD_CLOEXEC)
        assert isinstance(argument, bytearray)
        if number == 0xC00CAEE0:
            assert argument[:4] == struct.pack("=I", 4)
            argument[4:8] = struct.pack("=I", os.memfd_create("list", os.MFD_CLOEXEC))
            return 0
        assert number == 0x4018AEE1
        _, group, attribute, address = struct.unpack("=IIQQ", argument)
        assert (group, attribute) == (1, 1)
        assert address
        self.files.append(fd)
        return 0


@pytest.fixture
def device(kernel: FakeKernel, instance: Path) -> Iterator[FakeDevice]:
    """The device behind it, which opens only once a machine knows its group."""
    found = FakeDevice()
    found.flags = int(lib.VFIO_DEVICE_FLAGS_AP | lib.VFIO_DEVICE_FLAGS_RESET)
    found.regions, found.num_regions = {}, 0
    found.irqs, found.num_irqs = {0: (1, FIXED), 1: (1, FIXED)}, 2
    kernel.devices[UUID] = found
    yield found
    found.close()


def test_queues() -> None:
    assert ApQueue.parse("03.0006") == ApQueue(3, 6)
    assert str(ApQueue(0xFF, 0x4C)) == "ff.004c"
    for wrong in ("", "3.6", "03.", "03.0006\n", "zz.0000"):
        with pytest.raises(MalformedReplyError):
            ApQueue.parse(wrong)


def test_a_machine_without_a_matrix(tree: FakeSysfs) -> None:
    with pytest.raises(UnsupportedError, match=r"does not support AP instructions"):
        ap.create()


def test_what_is_assigned(instance: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    monkeypatch.setattr(writes, "write", lambda path, text, deadline: log.append(f"{path.name} {text}"))
    mdev = ApMdev(vfio_user.mdev.mdev(UUID).uuid)
    assert (len(mdev.queues), len(mdev.guest_queues)) == (0, 0)
    assert not mdev.control_domains
    mdev.assign(adapters=[3, 4], domains=[6], control_domains=[71])
    mdev.unassign(adapters=[4])
    assert log == [
        "assign_adapter 0x3",
        "assign_adapter 0x4",
        "assign_domain 0x6",
        "assign_control_domain 0x47",
        "unassign_adapter 0x4",
    ]
    (instance / "matrix").write_text("03.0006\n04.\n03.0004\n")
    (instance / "guest_matrix").write_text("03.0006\n")
    (instance / "control_domains").write_text("0006\n0047\n")
    assert mdev.queues == (ApQueue(3, 4), ApQueue(3, 6))
    assert mdev.guest_queues == (ApQueue(3, 6),)
    assert mdev.control_domains == (6, 71)
    with pytest.raises(BoundsError):
        mdev.assign(domains=[256])


@pytest.mark.parametrize(
    ("code", "hint"), [(errno.EADDRNOTAVAIL, r"apmask and aqmask"), (errno.EADDRINUSE, r"Another mediated device")]
)
def test_why_a_queue_can_not_be_had(instance: Path, monkeypatch: pytest.MonkeyPatch, code: int, hint: str) -> None:
    def refuse(path: Path, text: str, deadline: float) -> None:
        raise VfioOSError(code, "write")

    monkeypatch.setattr(writes, "write", refuse)
    with pytest.raises(VfioOSError, match=hint) as error:
        ApMdev(vfio_user.mdev.mdev(UUID).uuid).assign(domains=[6])
    assert error.value.errno == code


def test_it_opens_for_a_virtual_machine(
    device: FakeDevice, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    kvm = FakeKvm(monkeypatch)
    with nothing_left(), KvmVm() as vm, vfio_user.open_ap(UUID, vm=vm, mode="type1v2") as opened:
        assert len(kvm.files) == 1
        assert container_of(opened.vdev, ApDevice.vdev) is opened
        assert opened.vdev.info.flags & DeviceFlags.AP
        assert opened.regions == ()
        assert [opened.irq(kind).count for kind in ApIrq] == [1, 1]
        assert opened.irq(ApIrq.CFG_CHG).label == "CFG_CHG"
        opened.reset()
    assert device.resets == 1


def test_without_one_it_says_what_is_missing(device: FakeDevice, kernel: FakeKernel) -> None:
    kernel.failing["VFIO_GROUP_GET_DEVICE_FD"] = errno.EINVAL
    with nothing_left(), pytest.raises(VfioOSError, match=r"virtual machine of KVM's only.*vm=KvmVm\(\)") as error:
        vfio_user.open_ap(UUID, mode="type1v2")
    assert error.value.errno == errno.EINVAL


def test_a_machine_without_kvm(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeKvm(monkeypatch, node=False)
    with nothing_left(), pytest.raises(UnsupportedError, match=r"has no KVM.*SIE is not available"):
        KvmVm()


def test_other_mediated_devices_are_refused(instance: Path, matrix: Path) -> None:
    (matrix / "mdev_supported_types" / TYPE / "device_api").write_text("vfio-pci\n")
    with pytest.raises(ArgumentError, match=r"not of the AP matrix, but one of vfio-pci"):
        vfio_user.open_ap(UUID)

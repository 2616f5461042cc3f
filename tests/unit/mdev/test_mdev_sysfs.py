"""Mediated devices in sysfs: found, made, removed, and what is refused."""

from __future__ import annotations

import errno
import uuid

import pytest

import vfio_user
from tests.unit.fake_device import FakeDevice
from tests.unit.mdev.conftest import FIRST, GROUP, FakeMdevBus
from vfio_user.errors import ArgumentError, BusyError, UnsupportedError, VfioOSError
from vfio_user.mdev import mdev, mdev_parent, mdev_parents, mdevs

SECOND = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1002"


def test_parents_and_types(bus: FakeMdevBus) -> None:
    assert mdev_parents() == ()
    bus.parent("mtty", "mtty-1", "mtty-2")
    bus.parent("0.0.0001", "vfio_ccw-io", api="vfio-ccw", available=1)
    assert [each.name for each in mdev_parents()] == ["0.0.0001", "mtty"]
    assert [each.name for each in mdev_parent("mtty").types] == ["mtty-1", "mtty-2"]
    kind = mdev_parent("0.0.0001").type("io")
    assert kind == mdev_parent("0.0.0001").type("vfio_ccw-io")
    assert (kind.title, kind.description, kind.device_api, kind.available) == ("The vfio_ccw-io", "", "vfio-ccw", 1)
    (kind.path / "description").write_text("num_heads: 1\nframebuffer: 4M\n")
    assert kind.description == "num_heads: 1\nframebuffer: 4M"


def test_what_there_is_not(bus: FakeMdevBus) -> None:
    with pytest.raises(UnsupportedError, match=r"'mtty' offers.*none \(modprobe"):
        mdev_parent("mtty")
    bus.parent("mdpy", "mdpy-vga", "mdpy-xga")
    with pytest.raises(UnsupportedError, match="those that do: mdpy"):
        mdev_parent("mtty")
    with pytest.raises(ArgumentError, match="no type 'hd' of mediated devices; it has: mdpy-vga, mdpy-xga"):
        mdev_parent("mdpy").type("hd")
    with pytest.raises(ArgumentError, match=f"no mediated device {FIRST} on this machine"):
        mdev(FIRST)
    for text in ("mtty", "", FIRST[:-1], f"{FIRST}0"):
        with pytest.raises(ArgumentError, match="is not a UUID, such as"):
            mdev(text)


def test_create_and_remove(bus: FakeMdevBus) -> None:
    bus.parent("mtty", "mtty-1", "mtty-2")
    kind = mdev_parent("mtty").type("2")
    made = kind.create(FIRST.upper())
    other = kind.create()
    assert made.uuid == uuid.UUID(FIRST)
    assert made.name == str(made) == FIRST
    assert mdev(made) is made
    assert mdev(FIRST) == mdev(made.uuid) == made
    assert set(mdevs()) == set(kind.mdevs) == set(kind.parent.mdevs) == {made, other}
    assert kind.parent.type("1").mdevs == ()
    assert (made.parent, made.type, made.device_api) == (kind.parent, kind, "vfio-pci")
    assert (made.driver, made.iommu_group, made.vfio_device, made.noiommu) == ("fake", GROUP, "vfio3", False)
    made.remove()
    assert mdevs() == (other,)
    assert not made.exists()
    for look in (lambda: made.parent, lambda: made.type, lambda: made.device_api):
        with pytest.raises(VfioOSError, match="It was removed") as caught:
            look()
        assert caught.value.errno == errno.ENOENT


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (errno.EEXIST, BusyError, f"there is a mediated device {SECOND} already"),
        (errno.ENOSPC, BusyError, "mtty has no room for another mtty-1: 2 are left"),
        (errno.EUSERS, BusyError, "mtty has no room for another mtty-1: 2 are left"),
        (errno.EACCES, VfioOSError, "EACCES"),
    ],
)
def test_creation_refused(bus: FakeMdevBus, code: int, kind: type[Exception], words: str) -> None:
    bus.parent("mtty", "mtty-1")
    bus.failing["create"] = code
    with pytest.raises(kind, match=words):
        mdev_parent("mtty").type("mtty-1").create(SECOND)
    assert mdevs() == ()


def test_count_that_is_no_number(bus: FakeMdevBus) -> None:
    folder = bus.parent("mtty", "mtty-1")
    attribute = folder / "mdev_supported_types/mtty-1/available_instances"
    for text in ("many\n", "", "-1"):
        attribute.write_text(text)
        assert mdev_parent("mtty").type("mtty-1").available == 0
    attribute.unlink()
    assert mdev_parent("mtty").type("mtty-1").available == 0


def test_what_is_open_is_not_removed(instance: FakeDevice) -> None:
    with vfio_user.open_mdev(FIRST, mode="type1v2"):
        with pytest.raises(BusyError, match=f"{FIRST} is open in this process; close it first"):
            mdev(FIRST).remove()
        assert mdev(FIRST).exists()
    mdev(FIRST).remove()
    assert mdevs() == ()

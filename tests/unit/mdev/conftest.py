"""A parent with types and instances, as sysfs shows them."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.fake_device import FakeDevice
from tests.unit.fake_kernel import FakeKernel
from tests.unit.fake_sysfs import FakeSysfs
from vfio_user.errors import VfioOSError
from vfio_user.kernel import writes

FIRST = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"
GROUP = 9


class FakeMdevBus:
    """The mdev part of a tree that stands in for sysfs; what is written to it takes effect."""

    def __init__(self, tree: FakeSysfs, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tree = tree
        self.failing: dict[str, int] = {}
        """By attribute: the errno that writing it fails with."""
        monkeypatch.setattr(writes, "write", self.write)
        (tree.root / "class/mdev_bus").mkdir(parents=True)
        (tree.root / "bus/mdev/devices").mkdir(parents=True)

    def parent(self, name: str, *types: str, api: str = "vfio-pci", available: int = 2) -> Path:
        """Add a parent."""
        folder = self.tree.root / "devices/virtual" / name
        for kind in types:
            (folder / "mdev_supported_types" / kind / "devices").mkdir(parents=True)
            for attribute, text in {"name": f"The {kind}", "device_api": api, "available_instances": available}.items():
                (folder / "mdev_supported_types" / kind / attribute).write_text(f"{text}\n")
        (self.tree.root / "class/mdev_bus" / name).symlink_to(folder)
        return folder

    def create(self, folder: Path, kind: str, name: str) -> None:
        """Make an instance, bound to its driver and in a group of its own."""
        path = folder / name
        members = self.tree.root / "kernel/iommu_groups" / str(GROUP) / "devices"
        for each in (path, members, self.tree.root / "bus/mdev/drivers/fake"):
            each.mkdir(parents=True, exist_ok=True)
        (path / "mdev_type").symlink_to(folder / "mdev_supported_types" / kind)
        (path / "iommu_group").symlink_to(members.parent)
        (path / "driver").symlink_to(self.tree.root / "bus/mdev/drivers/fake")
        (path / "vfio-dev/vfio3").mkdir(parents=True)
        for links in (self.tree.root / "bus/mdev/devices", path / "mdev_type/devices", members):
            (links / name).symlink_to(path)

    def remove(self, path: Path) -> None:
        """Take an instance away."""
        real = path.resolve()
        (path.resolve() / "mdev_type/devices" / path.name).unlink()
        (self.tree.root / "bus/mdev/devices" / path.name).unlink()
        shutil.rmtree(real)

    def write(self, path: Path, text: str, deadline: float) -> None:
        """Stand in for `writes.write`."""
        if path.name in self.failing:
            raise VfioOSError(self.failing[path.name], f"write {text} to {path}")
        if path.name == "create":
            self.create(path.parents[2], path.parent.name, str(uuid.UUID(text)))
        elif path.name == "remove":
            self.remove(path.parent)
        else:
            raise AssertionError(path)


@pytest.fixture
def bus(tree: FakeSysfs, monkeypatch: pytest.MonkeyPatch) -> FakeMdevBus:
    """A machine that knows mediated devices and has no parent of any."""
    return FakeMdevBus(tree, monkeypatch)


@pytest.fixture
def instance(bus: FakeMdevBus, kernel: FakeKernel) -> Iterator[FakeDevice]:
    """An instance that can be opened."""
    bus.create(bus.parent("mtty", "mtty-1", "mtty-2"), "mtty-1", FIRST)
    device = kernel.devices[FIRST] = FakeDevice()
    yield device
    device.close()

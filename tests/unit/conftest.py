"""What stands in for sysfs and for VFIO in tests that need no kernel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import vfio_user
from tests.unit.fake_device import FakeDevice
from tests.unit.fake_kernel import FakeKernel
from tests.unit.fake_sysfs import FakeSysfs
from vfio_user import PciDevice, testing

ADDRESS = "0000:01:00.0"

# On a loaded machine everything takes its time; what hangs is ended by the timeout of each test.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# Emulated, an example takes twenty times as long; what is shown there is the other machine, not the hundredth example.
settings.register_profile("emulated", settings.get_profile("unhurried"), max_examples=10)
settings.load_profile("emulated" if testing.in_guest() else "unhurried")


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSysfs:
    """A machine without devices."""
    return FakeSysfs(tmp_path, monkeypatch)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    """VFIO that knows no device."""
    return FakeKernel(monkeypatch)


@pytest.fixture
def device(kernel: FakeKernel, tree: FakeSysfs) -> Iterator[FakeDevice]:
    """A device in group 7, bound to vfio-pci."""
    tree.add(ADDRESS, driver="vfio-pci", group=7)
    device = kernel.devices[ADDRESS] = FakeDevice()
    yield device
    device.close()


@pytest.fixture
def pci(device: FakeDevice) -> Iterator[PciDevice]:
    """The same device, open."""
    with vfio_user.open(ADDRESS, mode="type1v2") as pci:
        yield pci

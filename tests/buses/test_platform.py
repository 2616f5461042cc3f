"""What the kernel refuses of platform and AMBA devices, and what is said then; lending them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import vfio_user
from tests.buses.conftest import MODES
from tests.guest.leaks import nothing_left
from vfio_user import testing
from vfio_user.binding import lent
from vfio_user.errors import ArgumentError, BindError, BusyError, UnsupportedError
from vfio_user.platform import AmbaNode, PlatformNode

Place = Callable[[str], str]
CONFIG = "9020000.fw-cfg"


def test_all_of_them_are_found() -> None:
    assert {"9000000.pl011", "9010000.pl031"} <= {each.name for each in AmbaNode.all()}
    assert {"0.flash", CONFIG} <= {each.name for each in PlatformNode.all()}
    for wrong in ("nothing", "", "..", "../../../class"):
        with pytest.raises(ArgumentError, match=r"ls /sys/bus/amba/devices"):
            AmbaNode.find(wrong)


def test_a_device_is_lent_for_a_block_and_is_as_before_afterwards() -> None:
    node = PlatformNode.find(CONFIG)
    assert PlatformNode.find(CONFIG).driver is None
    with pytest.raises(UnsupportedError, match=r"not bound to vfio-platform \(driver: none\).*lent"):
        vfio_user.open_platform(CONFIG, allow_noiommu=True)
    with nothing_left(), lent(node):
        assert node.driver == "vfio-platform"
        with vfio_user.open_platform(CONFIG, allow_noiommu=True) as platform:
            (region,) = platform.regions
            region.pwrite(8, b"\0\0")  # the selector, big-endian: the signature
            assert b"".join(region.pread(0, 1) for _ in range(4)) == b"QEMU"
    assert PlatformNode.find(CONFIG).driver is None
    assert (node.path / "driver_override").read_text().strip() in ("", "(null)")


def test_one_opener_at_a_time(place: Place) -> None:
    name = place("pl031")
    again = pytest.raises(BusyError, match=r"is open in this process")
    with nothing_left(), vfio_user.open_amba(name, allow_noiommu=True), again:
        vfio_user.open_amba(name, allow_noiommu=True)


def test_a_driver_that_the_kernel_lacks_is_named() -> None:
    with (
        pytest.raises(BindError, match=r"has no driver vfio-moon of the bus amba"),
        lent(AmbaNode.find("9010000.pl031"), "vfio-moon"),
    ):
        raise AssertionError("lent to a driver that there is not")


def test_without_an_iommu_only_who_asks_gets_in(place: Place) -> None:
    name = place("pl031")
    if "noiommu" in MODES:
        with pytest.raises(UnsupportedError, match=r"allow_noiommu=True"):
            vfio_user.open_amba(name)
        parameter = Path("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode")
        parameter.write_text("N")
        try:
            with (
                pytest.raises(BindError, match=r"enable_unsafe_noiommu_mode=1"),
                lent(PlatformNode.find(CONFIG)),
            ):
                raise AssertionError("bound without an IOMMU")
        finally:
            parameter.write_text("Y")
    else:
        with vfio_user.open_amba(name) as amba:
            assert amba.address_space.mode.translates
            groups = {PlatformNode.find(testing.device("flash").address).iommu_group, amba.node.iommu_group}
            assert len(groups) == 2, "each has a group of its own"

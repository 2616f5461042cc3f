"""A platform device of two regions that can be mapped and no interrupt: flash behind the common flash interface."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import vfio_user
from tests.buses.conftest import Way
from tests.guest.leaks import nothing_left
from vfio_user.drivers.cfi import CfiFlash
from vfio_user.errors import AlignmentError, BoundsError, UnsupportedError
from vfio_user.kernel.uapi import DeviceFlags

Place = Callable[[str], str]
BANK = 64 << 20


def test_what_it_is(place: Place, way: Way) -> None:
    with nothing_left(), vfio_user.open_platform(place("flash"), **way) as platform:
        assert platform.vdev.info.flags & DeviceFlags.PLATFORM
        assert platform.node.compatible == ("cfi-flash",)
        assert [each.size for each in platform.regions] == [BANK, BANK]
        assert all(each.mmio is not None for each in platform.regions)
        assert platform.vdev.irqs == ()
        with pytest.raises(UnsupportedError, match=r"has no interrupt 0; it has 0"):
            platform.irq()


@pytest.mark.parametrize("bank", [0, 1])
def test_the_chips_say_what_they_are(place: Place, bank: int) -> None:
    with vfio_user.open_platform(place("flash"), allow_noiommu=True) as platform, CfiFlash(platform, bank) as flash:
        assert flash.geometry.size == BANK
        assert flash.geometry.command_set == 1
        assert sum(count * size for count, size in flash.geometry.blocks) == BANK


def test_erase_and_program(place: Place) -> None:
    with (
        nothing_left(),
        vfio_user.open_platform(place("flash"), allow_noiommu=True) as platform,
        CfiFlash(platform, 1) as flash,
    ):
        _, size = flash.geometry.blocks[0]
        flash.erase(size)
        assert flash.read(size, 64) == b"\xff" * 64
        flash.program(size + 8, b"sixteen letters!")
        assert flash.read(size, 32) == b"\xff" * 8 + b"sixteen letters!" + b"\xff" * 8
        flash.program(size + 8, b"\0\0\0\0")
        assert flash.read(size + 8, 8) == b"\0\0\0\0een "
        flash.erase(size)
        assert flash.read(size + 8, 16) == b"\xff" * 16
        for offset, length, error in ((2, 4, AlignmentError), (0, 3, AlignmentError), (BANK, 4, BoundsError)):
            with pytest.raises(error):
                flash.read(offset, length)
        with pytest.raises(AlignmentError, match=r"no block begins"):
            flash.erase(size + 4)

"""An AMBA device: the PL031, its registers mapped and through the file, its level interrupt."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

import vfio_user
from tests.buses.conftest import Way
from tests.guest.leaks import nothing_left
from vfio_user import AmbaDevice, container_of
from vfio_user.drivers.pl031 import Pl031
from vfio_user.errors import BoundsError, DeadlineError, UnsupportedError, ZappedError
from vfio_user.kernel.uapi import DeviceFlags, IrqFlags, RegionFlags
from vfio_user.memory import ZapReason

Place = Callable[[str], str]
LEVEL = IrqFlags.EVENTFD | IrqFlags.MASKABLE | IrqFlags.AUTOMASKED


def test_what_it_is(place: Place, way: Way) -> None:
    with nothing_left(), vfio_user.open_amba(place("pl031"), **way) as amba:
        assert amba.node.peripheral_id == 0x00141031
        assert amba.node.compatible[0] == "arm,pl031"
        assert amba.vdev.info.flags & DeviceFlags.AMBA
        assert container_of(amba.vdev, AmbaDevice.vdev) is amba
        (region,) = amba.regions
        assert (region.size, region.mmio is not None) == (0x1000, True)
        assert region.flags & RegionFlags.MMAP
        assert amba.irq().flags == LEVEL
        with pytest.raises(UnsupportedError, match=r"has no interrupt 1; it has 1"):
            amba.irq(1)
        with pytest.raises(BoundsError):
            amba.region(1)


def test_mapped_registers_and_the_file_tell_the_same(place: Place, way: Way) -> None:
    with vfio_user.open_amba(place("pl031"), **way) as amba:
        region = amba.region(0)
        mapped = bytes(region.read32(0xFE0 + 4 * n) & 0xFF for n in range(8))
        filed = bytes(region.pread(0xFE0 + 4 * n, 4)[0] for n in range(8))
        assert mapped == filed == bytes.fromhex("311014000df005b1")
        before = region.read32(0)
        assert before <= int.from_bytes(region.pread(0, 4), "little") <= before + 60


def test_it_tells_the_time(place: Place, way: Way) -> None:
    with nothing_left(), vfio_user.open_amba(place("pl031"), **way) as amba, Pl031(amba) as clock:
        was = clock.now
        assert was > 1_700_000_000  # the kernel has no driver for it, so this is the host's
        try:
            clock.set(1_000_000_000)
            assert 0 <= clock.now - 1_000_000_000 < 60
        finally:
            clock.set(was)
        with pytest.raises(BoundsError, match=r"32 bits"):
            clock.set(1 << 32)


def test_its_alarm_interrupts_once_each_time(place: Place, way: Way) -> None:
    with nothing_left(), vfio_user.open_amba(place("pl031"), **way) as amba, Pl031(amba) as clock:
        for _ in range(2):
            at = clock.now + 1
            clock.alarm_at(at)
            assert clock.wait(30) >= at
            assert clock.vector.drain() == 0
        clock.alarm_at(clock.now + 3600)
        with pytest.raises(DeadlineError, match=r"no interrupt"):
            clock.wait(0.2)


def test_a_level_masks_itself_and_fires_again_while_it_is_up(place: Place, way: Way) -> None:
    with vfio_user.open_amba(place("pl031"), **way) as amba, Pl031(amba) as clock:
        irq = amba.irq()
        clock.alarm_at(clock.now + 1)
        assert clock.vector.wait(30) == 1
        time.sleep(0.2)
        assert clock.vector.drain() == 0, "it is masked, though the line is up"
        irq.unmask()
        assert clock.vector.wait(10) == 1, "the line is up still"
        clock.regs.clear.write(1)
        irq.unmask()
        time.sleep(0.2)
        assert clock.vector.drain() == 0, "the line is down"
        irq.trigger()
        assert clock.vector.wait(10) == 1


def test_unmasking_by_eventfd(place: Place, way: Way) -> None:
    with nothing_left(), vfio_user.open_amba(place("pl031"), **way) as amba, Pl031(amba) as clock:
        resample = amba.irq().resample()
        clock.alarm_at(clock.now + 1)
        assert clock.vector.wait(30) == 1
        resample.signal()
        assert clock.vector.wait(10) == 1


def test_memory_is_taken_away_and_given_back_at_the_same_address(place: Place, way: Way) -> None:
    with nothing_left(), vfio_user.open_amba(place("pl031"), **way) as amba:
        region, memory = amba.region(0), amba.vdev.memory
        view = region.view(0xFE0, 4)
        assert bytes(view[:1]) == b"\x31"
        assert memory.window is not None
        memory.window.lock_write(10)
        try:
            memory.take_away(ZapReason.RESET)
            assert bytes(view) == b"\xff" * 4
        finally:
            memory.window.unlock_write()
        with pytest.raises(ZappedError):
            region.read32(0xFE0)
        memory.window.lock_write(10)
        try:
            memory.give_back(amba.vdev.fileno())
        finally:
            memory.window.unlock_write()
        assert region.read32(0xFE0) & 0xFF == view[0] == 0x31


def test_it_can_not_be_reset(place: Place) -> None:
    with vfio_user.open_amba(place("pl031"), allow_noiommu=True) as amba, Pl031(amba) as clock:
        with pytest.raises(UnsupportedError, match=r"no reset function"):
            amba.reset()
        assert clock.now, "and works as before"

"""Regions: registers in mapped memory and through the file, with bounds, widths and what a region lacks."""

from __future__ import annotations

import array
import math
import struct
import time

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.guest.leaks import nothing_left
from tests.unit.conftest import ADDRESS
from tests.unit.fake_device import MAPPABLE, READ_WRITE, FakeDevice
from vfio_user import PciDevice, Region, open_all
from vfio_user import open as open_device
from vfio_user._mmio import Program
from vfio_user._uapi import lib
from vfio_user.device.registers import FileRegisters
from vfio_user.errors import (
    AlignmentError,
    ArgumentError,
    BoundsError,
    ClosedError,
    DeadlineError,
    UnsupportedError,
)

WIDTHS = (1, 2, 4, 8)


@pytest.fixture(params=[MAPPABLE, READ_WRITE], ids=["mapped", "file"])
def bar(request: pytest.FixtureRequest, device: FakeDevice) -> Region:
    """BAR 0, once mapped and once as an I/O port would be."""
    device.regions[0] = (0x100, request.param)
    pci: PciDevice = request.getfixturevalue("pci")
    assert (pci.bar(0).mmio is not None) == (request.param == MAPPABLE)
    return pci.bar(0)


@pytest.mark.parametrize("width", WIDTHS)
def test_registers_are_little_endian(bar: Region, device: FakeDevice, width: int) -> None:
    read, write = getattr(bar, f"read{8 * width}"), getattr(bar, f"write{8 * width}")
    data = bytes(range(1, width + 1))
    write(2 * width, int.from_bytes(data, "little"))
    assert device.read(0, 0, 4 * width) == bytes(2 * width) + data + bytes(width)
    assert read(2 * width) == int.from_bytes(data, "little")
    device.write(0, 0x100 - width, b"\xff" * width)
    assert read(0x100 - width) == (1 << 8 * width) - 1


@pytest.mark.parametrize("width", WIDTHS)
def test_registers_that_are_not_there(bar: Region, width: int) -> None:
    read, write = getattr(bar, f"read{8 * width}"), getattr(bar, f"write{8 * width}")
    for offset in (-width, 0x100, 1 << 40, (1 << 63) - width):
        with pytest.raises(BoundsError):
            read(offset)
        with pytest.raises(BoundsError):
            write(offset, 0)
    if width > 1:
        with pytest.raises(AlignmentError):
            read(width // 2)
    for value in (-1, 1 << 8 * width):
        with pytest.raises(ArgumentError):
            write(0, value)


def test_poll_until(bar: Region, device: FakeDevice) -> None:
    device.write(0, 8, struct.pack("<I", 0x81))
    assert bar.poll_until(8, mask=0x80, equals=0x80, timeout=1.0) == 0x81
    assert bar.poll_until(8, mask=0xFF, equals=0x81, timeout=0, width=1) == 0x81
    begin = time.monotonic()
    with pytest.raises(DeadlineError, match="0x81"):
        bar.poll_until(8, mask=1, equals=0, timeout=0.02)
    assert 0.02 <= time.monotonic() - begin < 5
    with pytest.raises(ArgumentError, match="would never be seen"):
        bar.poll_until(8, mask=1, equals=2, timeout=1.0)
    for endless in (-1, math.inf, math.nan):
        with pytest.raises(ArgumentError, match="not a number of seconds"):
            bar.poll_until(8, mask=1, equals=0, timeout=endless)
    with pytest.raises(ArgumentError, match="1, 2, 4 or 8"):
        bar.poll_until(8, mask=1, equals=1, timeout=0, width=3)


def test_poll_until_sees_the_device_change_it(bar: Region, device: FakeDevice) -> None:
    from tests.unit.threads import start

    waiter = start(lambda: bar.poll_until(0, mask=1, equals=1, timeout=30.0))
    time.sleep(0.02)
    device.write(0, 0, b"\1")
    assert waiter.result(10) == 1


# -- through the file


def test_bytes_through_the_file(bar: Region, device: FakeDevice) -> None:
    bar.pwrite(3, b"bytes")
    assert bar.pread(0, 10) == b"\0\0\0bytes\0\0"
    bar.pwrite(16, memoryview(array.array("I", [1, 2])))
    assert device.read(0, 16, 8) == struct.pack("=II", 1, 2)


@pytest.mark.parametrize(("offset", "size"), [(0, 0), (0, -1), (-1, 4), (0xFD, 4), (0x100, 1), (0, 1 << 40)])
def test_bytes_that_are_not_there(bar: Region, offset: int, size: int) -> None:
    with pytest.raises(BoundsError, match=rf"outside of {ADDRESS} region 0, 0x100 bytes"):
        bar.pread(offset, size)
    with pytest.raises(BoundsError):
        bar.pwrite(offset, bytes(min(max(size, 0), 0x200)))


def test_items_wider_than_bytes_do_not_cheat_the_bounds(bar: Region) -> None:
    with pytest.raises(BoundsError, match="8 bytes at offset 0xfc"):
        bar.pwrite(0xFC, memoryview(array.array("I", [1, 2])))


def test_region_that_is_read_only(device: FakeDevice) -> None:
    device.regions[6] = (0x1000, int(lib.VFIO_REGION_INFO_FLAG_READ))
    device.write(6, 0, b"\x55\xaa")
    with open_device(ADDRESS, mode="type1v2") as pci:
        rom = pci.rom
        assert rom is not None
        assert rom.read16(0) == 0xAA55
        with pytest.raises(UnsupportedError, match="region 6 can't be written"):
            rom.write16(0, 0)


# -- mapped


def test_what_needs_a_mapping(device: FakeDevice) -> None:
    device.regions[0] = (0x100, READ_WRITE)
    with open_device(ADDRESS, mode="type1v2") as pci:
        bar = pci.bar(0)
        for refused in (
            bar.access,
            bar.view,
            lambda: bar.run(Program([("read32", 0)])),
            lambda: bar.readinto(0, bytearray(4)),
            lambda: bar.write_block(0, bytes(4)),
        ):
            with pytest.raises(UnsupportedError, match=f"{ADDRESS} region 0 can't be mapped; use read32"):
                refused()


def test_mapped_memory(pci: PciDevice, device: FakeDevice) -> None:
    bar = pci.bar(0)
    bar.write_block(0, struct.pack("<4I", 1, 2, 3, 4))
    buffer = bytearray(8)
    bar.readinto(4, buffer)
    assert struct.unpack("<2I", buffer) == (2, 3)
    assert bar.run(Program([("write32", 0, 9), ("read32", 0), ("read32", 12)])) == [9, 4]
    assert bytes(bar.view(0, 4)) == struct.pack("<I", 9)
    assert bar.array()[3] == 4
    assert isinstance(bar.array("<u2"), numpy.ndarray)
    with bar.access() as mmio:
        assert mmio.read32(8) == 3
    assert repr(bar) == f"<Region {ADDRESS} region 0 0x1000 bytes mapped>"


def test_closed_device(device: FakeDevice) -> None:
    with nothing_left():
        with open_device(ADDRESS, mode="type1v2") as pci:
            bar = pci.bar(0)
            view = bar.view()
            view[0] = 7
        with pytest.raises(ClosedError, match=f"{ADDRESS} is closed"):
            bar.read32(0)
        with pytest.raises(ClosedError, match=f"{ADDRESS} is closed"):
            bar.pread(0, 4)
        with pytest.raises(ClosedError, match=f"{ADDRESS} is closed"), bar.access():
            pass
        assert view[0] == 0xFF, "a view of dead memory reads all-ones"
        del view, bar, pci


def test_devices_opened_together(device: FakeDevice) -> None:
    with nothing_left():
        with open_all([ADDRESS], mode="type1v2") as devices:
            assert [each.name for each in devices] == [ADDRESS]
            assert devices[0].address_space is devices.address_space
        assert all(each.closed for each in devices)
        assert devices.address_space.closed
        del devices


@given(st.binary(min_size=64, max_size=64), st.integers(-4, 68), st.sampled_from(WIDTHS))
def test_file_registers_against_bytes(content: bytes, offset: int, width: int) -> None:
    registers = FileRegisters("region", 64, lambda at, size: content[at : at + size], lambda at, data: None)
    read = {1: registers.read8, 2: registers.read16, 4: registers.read32, 8: registers.read64}[width]
    if 0 <= offset <= 64 - width and offset % width == 0:
        assert read(offset) == int.from_bytes(content[offset : offset + width], "little")
    else:
        with pytest.raises(ArgumentError):
            read(offset)

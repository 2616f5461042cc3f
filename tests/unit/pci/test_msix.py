"""The hole round the MSI-X table: pages that are not mapped, and nothing else."""

from __future__ import annotations

import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vfio_user
from tests.unit.conftest import ADDRESS
from tests.unit.fake_device import CONFIG, MAPPABLE, FakeDevice
from vfio_user import PciDevice
from vfio_user._uapi import lib
from vfio_user.device.info import SparseArea
from vfio_user.errors import ArgumentError
from vfio_user.pci.msix import MsixTable, cut_hole, find_table

PAGE = 0x1000


def put_table(device: FakeDevice, *, bar: int = 0, offset: int = 0x2000, vectors: int = 16, at: int = 0x40) -> None:
    """Write the MSI-X capability, behind one at the very end of the list's room."""
    device.write(CONFIG, 6, b"\x10\0")
    device.write(CONFIG, 0x34, b"\xfc")
    device.write(CONFIG, 0xFC, bytes([0x01, at]))
    device.write(CONFIG, at, struct.pack("<BBHI", 0x11, 0, vectors - 1, offset | bar))


def areas(pci: PciDevice, bar: int = 0) -> tuple[tuple[int, int], ...]:
    mmio = pci.bar(bar).mmio
    assert mmio is not None
    return mmio.areas


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(1, 8)), max_size=4),
    st.integers(0, 24 * PAGE),
    st.integers(1, 3 * PAGE),
)
def test_hole_takes_whole_pages_and_nothing_else(spans: list[tuple[int, int]], offset: int, size: int) -> None:
    pages: set[int] = set()
    mappable = []
    for first, count in spans:
        if not pages & set(range(first, first + count)):
            pages |= set(range(first, first + count))
            mappable.append(SparseArea(first * PAGE, count * PAGE))
    kept = cut_hole(sorted(mappable), offset, size, PAGE)
    hole = set(range(offset // PAGE, -(-(offset + size) // PAGE)))
    covered = [page for area in kept for page in range(area.offset // PAGE, area.end // PAGE)]
    assert sorted(covered) == sorted(pages - hole)
    assert all(area.size > 0 and area.offset % PAGE == 0 for area in kept)


def test_kernel_that_keeps_the_table_to_itself(device: FakeDevice) -> None:
    device.regions[0] = (0x8000, MAPPABLE)
    put_table(device, offset=0x2010, vectors=512)
    with vfio_user.open(ADDRESS, mode="type1v2") as pci:
        assert find_table(pci.vdev) == MsixTable(0, 0x2010, 0x2000)
        assert areas(pci) == ((0, 0x2000), (0x5000, 0x3000))
        pci.bar(0).write32(0x1FFC, 5)
        assert device.read(0, 0x1FFC, 4) == b"\5\0\0\0"
        with pytest.raises(ArgumentError):
            pci.bar(0).read32(0x2010)
        assert pci.bar(0).pread(0x2010, 4) == bytes(4)


def test_kernel_that_maps_the_table_too(device: FakeDevice) -> None:
    device.regions[0] = (0x8000, MAPPABLE)
    device.capabilities[0] = struct.pack("=HHI", lib.VFIO_REGION_INFO_CAP_MSIX_MAPPABLE, 1, 0)
    put_table(device)
    with vfio_user.open(ADDRESS, mode="type1v2") as pci:
        assert areas(pci) == ((0, 0x8000),)


def test_table_in_another_bar(device: FakeDevice) -> None:
    device.regions[0] = device.regions[4] = (0x4000, MAPPABLE)
    put_table(device, bar=4, offset=0)
    with vfio_user.open(ADDRESS, mode="type1v2") as pci:
        assert areas(pci, 0) == ((0, 0x4000),)
        assert areas(pci, 4) == ((0x1000, 0x3000),)


def test_table_that_fills_its_bar(device: FakeDevice) -> None:
    put_table(device, offset=0)
    with vfio_user.open(ADDRESS, mode="type1v2") as pci:
        assert pci.bar(0).mmio is None
        assert pci.bar(0).read32(0) == 0, "through the file"


def test_last_place_where_the_capability_fits(device: FakeDevice) -> None:
    put_table(device, at=0xF0)
    with vfio_user.open(ADDRESS, mode="type1v2") as pci:
        assert find_table(pci.vdev) == MsixTable(0, 0x2000, 0x100)


@pytest.mark.parametrize("at", [0xF8, 0xFC])
def test_capability_that_is_cut_off(device: FakeDevice, at: int) -> None:
    device.write(CONFIG, 6, b"\x10\0")
    device.write(CONFIG, 0x34, bytes([at]))
    device.write(CONFIG, at, bytes([0x11, at]))
    with vfio_user.open(ADDRESS, mode="type1v2") as pci:
        assert find_table(pci.vdev) is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.binary(min_size=0xC0, max_size=0xC0), st.integers(0, 255))
def test_hostile_bytes(pci: PciDevice, device: FakeDevice, capabilities: bytes, first: int) -> None:
    device.write(CONFIG, 6, b"\x10\0")
    device.write(CONFIG, 0x34, bytes([first]))
    device.write(CONFIG, 0x40, capabilities)
    table = find_table(pci.vdev)
    assert table is None or (0 <= table.bar < 8 and 16 <= table.size <= 2048 * 16)

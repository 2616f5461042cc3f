"""Configuration space: fields, accesses, and capability lists that are made to hurt."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vfio_user
from tests.unit.conftest import ADDRESS
from tests.unit.fake_device import CONFIG, FakeDevice, header
from vfio_user import PciDevice
from vfio_user.errors import AlignmentError, ArgumentError, BoundsError, MalformedReplyError
from vfio_user.pci import CapabilityId, Command, ConfigSpace, ExtendedCapabilityId, Status
from vfio_user.pci.config import Capability, ExtendedCapability


@pytest.fixture
def config(pci: PciDevice) -> ConfigSpace:
    return pci.config


def put(device: FakeDevice, *capabilities: tuple[int, int, int], first: int = 0x40) -> None:
    """Write capabilities (offset, id, next), and that there are some."""
    device.write(CONFIG, 6, struct.pack("<H", Status.CAPABILITIES))
    device.write(CONFIG, 0x34, bytes([first]))
    for offset, identity, following in capabilities:
        device.write(CONFIG, offset, bytes([identity, following]))


def put_extended(device: FakeDevice, *capabilities: tuple[int, int, int]) -> None:
    for offset, identity, following in capabilities:
        device.write(CONFIG, offset, struct.pack("<I", identity | 1 << 16 | following << 20))


def test_standard_header(config: ConfigSpace, device: FakeDevice) -> None:
    fields = struct.pack("<HHHHIBBBB", 0x8086, 0x10C9, 0x0406, 0x0010, 0x02000001, 16, 0, 0x80, 0)
    bars = struct.pack("<6I", 0xFEB00004, 0, 0xC001, 0, 0, 0)
    device.write(CONFIG, 0, fields + bars)
    device.write(CONFIG, 0x2C, struct.pack("<HH", 0x1AF4, 0x1100))
    device.write(CONFIG, 0x3C, bytes([11, 1]))
    assert (config.vendor_id, config.device_id, config.class_code) == (0x8086, 0x10C9, 0x020000)
    assert config.command == Command.MEMORY | Command.MASTER | Command.INTX_DISABLE
    assert config.status == Status.CAPABILITIES
    assert (config.revision, config.cache_line_size, config.header_type) == (1, 16, 0)
    assert config.multi_function
    assert config.bars == (0xFEB00004, 0, 0xC001, 0, 0, 0)
    assert (config.subsystem_vendor_id, config.subsystem_id) == (0x1AF4, 0x1100)
    assert (config.interrupt_line, config.interrupt_pin) == (11, 1)
    assert config.size == 4096
    assert config.dump()[:2] == b"\x86\x80"
    assert len(config.dump()) == 4096


def test_accesses(config: ConfigSpace, device: FakeDevice) -> None:
    config.write8(0x3C, 0x12)
    config.write16(0x50, 0x3456)
    config.write32(0x54, 0x789ABCDE)
    assert device.read(CONFIG, 0x50, 8) == b"\x56\x34\0\0\xde\xbc\x9a\x78"
    assert (config.read8(0x3C), config.read16(0x50), config.read32(0x54)) == (0x12, 0x3456, 0x789ABCDE)


@pytest.mark.parametrize("width", [1, 2, 4])
def test_accesses_that_can_not_be(config: ConfigSpace, width: int) -> None:
    read, write = getattr(config, f"read{8 * width}"), getattr(config, f"write{8 * width}")
    for offset in (-width, 4096, 4096 - width + 1):
        with pytest.raises(BoundsError, match="configuration space has 0x1000 bytes"):
            read(offset)
    with pytest.raises(BoundsError, match=f"does not fit {8 * width} bits"):
        write(0x50, 1 << 8 * width)
    if width > 1:
        with pytest.raises(AlignmentError, match=f"not a multiple of the width {width}"):
            read(0x51)


def test_command_bits(config: ConfigSpace, pci: PciDevice) -> None:
    assert int(config.command) == Command.IO | Command.MEMORY
    pci.set_master(True)
    assert int(config.command) == Command.IO | Command.MEMORY | Command.MASTER
    pci.set_master(False)
    config.set_command(enable=Command.INTX_DISABLE, disable=Command.IO)
    assert int(config.command) == Command.MEMORY | Command.INTX_DISABLE


# -- capabilities


def test_no_list(config: ConfigSpace, device: FakeDevice) -> None:
    device.write(CONFIG, 0x34, b"\x40")
    assert list(config.capabilities()) == []
    assert list(config.extended_capabilities()) == []
    assert config.find(CapabilityId.MSI) is None


def test_list(config: ConfigSpace, device: FakeDevice) -> None:
    put(device, (0x40, 0x01, 0x50), (0x50, 0x05, 0xFC), (0xFC, 0x99, 0x62), (0x60, 0x11, 0))
    assert list(config.capabilities()) == [
        Capability(0x01, 0x40),
        Capability(0x05, 0x50),
        Capability(0x99, 0xFC),
        Capability(0x11, 0x60),
    ]
    assert [each.name for each in config.capabilities()] == ["power management", "msi", "0x99", "msix"]
    assert config.find(CapabilityId.MSIX) == 0x60
    assert config.find(CapabilityId.EXPRESS) is None


def test_extended_list(config: ConfigSpace, device: FakeDevice) -> None:
    put_extended(device, (0x100, 0x01, 0x200), (0x200, 0x10, 0xFFC), (0xFFC, 0x7FFF, 0))
    assert list(config.extended_capabilities()) == [
        ExtendedCapability(0x01, 1, 0x100),
        ExtendedCapability(0x10, 1, 0x200),
        ExtendedCapability(0x7FFF, 1, 0xFFC),
    ]
    assert [each.name for each in config.extended_capabilities()] == ["aer", "sriov", "0x7fff"]
    assert config.find(ExtendedCapabilityId.SRIOV) == 0x200


def test_capability_that_says_nothing_leads_on(config: ConfigSpace, device: FakeDevice) -> None:
    put(device, (0x40, 0, 0x50), (0x50, 0x05, 0))
    device.write(CONFIG, 0x100, struct.pack("<I", 0x200 << 20))
    put_extended(device, (0x200, 0x03, 0))
    assert [each.offset for each in config.capabilities()] == [0x50]
    assert [each.offset for each in config.extended_capabilities()] == [0x200]


def test_numbers_of_the_two_lists_overlap(config: ConfigSpace) -> None:
    with pytest.raises(ArgumentError, match="their numbers overlap"):
        config.find(0x10)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("capabilities", "first"),
    [
        ([(0x40, 1, 0x40)], 0x40),
        ([(0x40, 1, 0x50), (0x50, 2, 0x40)], 0x40),
        ([(0x40, 1, 0x3C)], 0x40),
        ([], 0x04),
    ],
)
def test_list_in_a_circle_or_out_of_bounds(
    config: ConfigSpace, device: FakeDevice, capabilities: list[tuple[int, int, int]], first: int
) -> None:
    put(device, *capabilities, first=first)
    with pytest.raises(MalformedReplyError, match="the capability list goes to 0x"):
        list(config.capabilities())


@pytest.mark.parametrize("following", [0x100, 0x40, 0xFF])
def test_extended_list_in_a_circle_or_out_of_bounds(config: ConfigSpace, device: FakeDevice, following: int) -> None:
    put_extended(device, (0x100, 1, following))
    with pytest.raises(MalformedReplyError, match="the extended capability list goes to 0x"):
        list(config.extended_capabilities())


def test_device_that_does_not_answer(config: ConfigSpace, device: FakeDevice) -> None:
    device.write(CONFIG, 0, b"\xff" * 4096)
    assert config.vendor_id == 0xFFFF
    assert list(config.capabilities()) == []
    assert list(config.extended_capabilities()) == []


@pytest.fixture
def conventional(device: FakeDevice) -> Iterator[PciDevice]:
    device.regions[CONFIG] = (256, device.regions[CONFIG][1])
    with vfio_user.open(ADDRESS, mode="type1v2") as pci:
        yield pci


def test_conventional_device_has_no_extended_list(conventional: PciDevice, device: FakeDevice) -> None:
    put_extended(device, (0x100, 1, 0))
    assert list(conventional.config.extended_capabilities()) == []
    assert len(conventional.config.dump()) == 256
    with pytest.raises(BoundsError, match="has 0x100 bytes"):
        conventional.config.read32(0x100)


LINKS = st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255), st.integers(0, 255)), max_size=20)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(LINKS, st.integers(0, 255), st.binary(max_size=64))
def test_hostile_bytes(
    config: ConfigSpace, device: FakeDevice, links: list[tuple[int, int, int]], first: int, extended: bytes
) -> None:
    device.write(CONFIG, 0, header((0x1234, 0x11E8, 0x00FF00)))
    put(device, *links, first=first)
    device.write(CONFIG, 0x100, extended)
    for walk, lowest, highest in ((config.capabilities, 0x40, 0xFC), (config.extended_capabilities, 0x100, 0xFFC)):
        try:
            offsets = [each.offset for each in walk()]
        except MalformedReplyError:
            continue
        assert len(offsets) == len(set(offsets))
        assert all(lowest <= offset <= highest for offset in offsets)

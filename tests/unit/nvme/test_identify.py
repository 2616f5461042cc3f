from __future__ import annotations

import contextlib
import dataclasses
import struct
import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfio_user.drivers.nvme.identify_controller import IdentifyController, PowerState
from vfio_user.drivers.nvme.identify_namespace import (
    IdentifyNamespace,
    LbaFormat,
    NamespaceDescriptors,
    parse_namespace_list,
)
from vfio_user.drivers.nvme.regs import Version
from vfio_user.errors import MalformedReplyError


def page(*parts: tuple[int, bytes]) -> bytes:
    data = bytearray(4096)
    for offset, value in parts:
        data[offset : offset + len(value)] = value
    return bytes(data)


def test_identify_controller() -> None:
    ident = IdentifyController.parse(
        page(
            (0, struct.pack("<HH", 0x1B36, 0x1AF4)),
            (4, b"SN0".ljust(20)),
            (24, b"QEMU NVMe Ctrl".ljust(40)),
            (64, b"8.0.2".ljust(8)),
            (73, bytes.fromhex("0254 00")),
            (77, b"\x07"),
            (80, struct.pack("<I", 0x10400)),
            (88, struct.pack("<I", 2_000_000)),
            (258, bytes([3, 4, 3, 0x0C, 63, 1])),
            (280, (1 << 100).to_bytes(16, "little")),
            (516, struct.pack("<IH", 256, 0b1100)),
            (525, b"\x01"),
            (768, b"nqn.2019-08.org.qemu:SN0\0"),
            (2048, struct.pack("<HBBII", 2500, 0, 0, 16, 4)),
            (2080, struct.pack("<HBBII", 300, 0, 0b11, 1000, 2000)),
        )
    )
    assert (ident.vendor_id, ident.subsystem_vendor_id) == (0x1B36, 0x1AF4)
    assert (ident.serial, ident.model, ident.firmware) == ("SN0", "QEMU NVMe Ctrl", "8.0.2")
    assert ident.ieee_oui == 0x005402
    assert ident.version == Version(1, 4)
    assert ident.max_transfer(4096) == 512 * 1024
    assert ident.shutdown_latency_us == 2_000_000
    assert (ident.abort_limit, ident.error_log_entries) == (4, 64)
    assert ident.total_capacity == 1 << 100
    assert ident.num_namespaces == 256
    assert ident.has_dataset_management
    assert ident.has_write_zeroes
    assert ident.has_write_cache
    assert ident.subsystem_nqn == "nqn.2019-08.org.qemu:SN0"
    assert ident.power_states == (PowerState(2500, 0, 16, 4), PowerState(300, 3, 1000, 2000))
    assert ident.power_states[0].max_power == pytest.approx(25.0)
    assert ident.power_states[0].operational
    assert ident.power_states[1].max_power == pytest.approx(0.03)
    assert not ident.power_states[1].operational


def test_values_are_frozen_and_no_limit_is_none() -> None:
    ident = IdentifyController.parse(bytes(4096))
    assert ident.max_transfer(4096) is None
    with pytest.raises(dataclasses.FrozenInstanceError):
        ident.serial = "other"  # type: ignore[misc]


def test_text_of_a_hostile_controller_is_still_text() -> None:
    assert IdentifyController.parse(page((4, b"\xff" * 20))).serial == "\ufffd" * 20


def test_short_or_impossible_structures_are_refused() -> None:
    with pytest.raises(MalformedReplyError, match="4095 bytes"):
        IdentifyController.parse(bytes(4095))
    with pytest.raises(MalformedReplyError, match="33 power states"):
        IdentifyController.parse(page((263, b"\x20")))
    with pytest.raises(MalformedReplyError, match="65 LBA formats"):
        IdentifyNamespace.parse(page((25, b"\x40")))


def test_identify_namespace() -> None:
    ident = IdentifyNamespace.parse(
        page(
            (0, struct.pack("<QQQ", 1000, 900, 800)),
            (24, bytes([4, 1, 0x11, 3])),
            (33, b"\x09"),
            (104, bytes(range(16))),
            (120, bytes(range(8))),
            (128, struct.pack("<II", 9 << 16, 2 << 24 | 12 << 16 | 8)),
        )
    )
    assert (ident.num_blocks, ident.capacity_blocks, ident.used_blocks) == (1000, 900, 800)
    assert ident.formats == (LbaFormat(0, 9, 0), LbaFormat(8, 12, 2))
    assert ident.block_size == 4096
    assert ident.interleaved_metadata
    assert not ident.write_protected
    assert (ident.nguid, ident.eui64) == (bytes(range(16)), bytes(range(8)))


def test_a_format_beyond_16_uses_the_high_bits() -> None:
    formats = struct.pack("<20I", *([0] * 18), 12 << 16, 0)
    ident = IdentifyNamespace.parse(page((25, bytes([19, 0b0010_0010])), (128, formats)))
    assert ident.block_size == 4096


@pytest.mark.parametrize(("flbas", "shift"), [(1, 9), (0, 8), (0, 32), (0, 0)])
def test_a_format_that_cannot_be_is_refused(flbas: int, shift: int) -> None:
    ident = IdentifyNamespace.parse(page((26, bytes([flbas])), (128, struct.pack("<I", shift << 16))))
    with pytest.raises(MalformedReplyError, match="LBA format"):
        _ = ident.block_size


def test_descriptors() -> None:
    some_uuid = uuid.uuid4()
    raw = bytes([3, 16, 0, 0]) + some_uuid.bytes + bytes([9, 2, 0, 0, 1, 2]) + bytes([4, 1, 0, 0, 0])
    raw += bytes([1, 8, 0, 0]) + bytes(range(8))
    found = NamespaceDescriptors.parse(page((0, raw)))
    assert found == NamespaceDescriptors(eui64=bytes(range(8)), nguid=None, uuid=some_uuid, command_set=0)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255), st.binary(max_size=40)), max_size=300))
def test_hostile_descriptors_end_or_are_refused(parts: list[tuple[int, int, bytes]]) -> None:
    raw = b"".join(bytes([kind, length, 0, 0]) + value for kind, length, value in parts)
    with contextlib.suppress(MalformedReplyError):
        NamespaceDescriptors.parse(raw[:4096].ljust(4096, b"\0"))


def test_a_descriptor_that_reaches_beyond_the_page_is_refused() -> None:
    raw = (bytes([200, 251, 0, 0]) + bytes(251)) * 16 + bytes([200, 20, 0, 0])
    with pytest.raises(MalformedReplyError, match="byte 4080: length 20"):
        NamespaceDescriptors.parse(raw.ljust(4096, b"\0"))


def test_namespace_list() -> None:
    assert parse_namespace_list(page((0, struct.pack("<4I", 1, 2, 7, 0)))) == [1, 2, 7]
    assert parse_namespace_list(struct.pack("<1024I", *range(1, 1025))) == list(range(1, 1025))
    with pytest.raises(MalformedReplyError, match="ascend"):
        parse_namespace_list(page((0, struct.pack("<3I", 1, 2, 2))))

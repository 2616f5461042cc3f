"""Capabilities, decoded from bytes."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_user.errors import BoundsError, MalformedReplyError, UnsupportedError
from vfio_user.pci.config import CapabilityId, ExtendedCapabilityId
from vfio_user.pci.decode import Decoded, decode
from vfio_user.pci.frozen import FrozenConfig, read_config

FIRST, NEXT = 0x40, 0x100


def space(standard: list[tuple[int, bytes]], extended: list[tuple[int, bytes]] | None = None) -> FrozenConfig:
    """Make a configuration space with capabilities: id, and what follows the header."""
    data = bytearray(4096 if extended else 256)
    data[6] = 0x10 if standard else 0
    data[0x34] = FIRST if standard else 0
    at = FIRST
    for number, (identity, payload) in enumerate(standard):
        following = at + -(-(2 + len(payload)) // 4) * 4
        data[at : at + 2] = bytes((identity, following if number + 1 < len(standard) else 0))
        data[at + 2 : at + 2 + len(payload)] = payload
        at = following
    at = NEXT
    for number, (identity, payload) in enumerate(extended or ()):
        following = at + -(-(4 + len(payload)) // 4) * 4
        head = identity | 1 << 16 | (following if number + 1 < len(extended or ()) else 0) << 20
        struct.pack_into("<I", data, at, head)
        data[at + 4 : at + 4 + len(payload)] = payload
        at = following
    return FrozenConfig(bytes(data))


def one(config: FrozenConfig) -> Decoded:
    (found,) = decode(config)
    return found


def test_power_management() -> None:
    found = one(space([(CapabilityId.POWER_MANAGEMENT, struct.pack("<HH", 0x0203, 0x0103))]))
    assert found == Decoded("power management", FIRST, False, {"version": 3, "state": "D3", "also": "D1", "PME": True})
    assert str(found) == "version 3, state D3, also D1, PME"


def test_msi_and_msix() -> None:
    config = space(
        [
            (CapabilityId.MSI, struct.pack("<H", 0x0089)),
            (CapabilityId.MSIX, struct.pack("<HII", 0x8040, 0x2004, 0x3004)),
        ]
    )
    msi, msix = decode(config)
    assert msi.fields == {"vectors": 16, "64 bits": True, "masking": False, "enabled": True}
    assert str(msi) == "vectors 16, 64 bits, enabled"
    assert msix.fields["vectors"] == 65
    assert msix.fields["table"] == "BAR 4 at 0x2000"
    assert msix.fields["pending bits"] == "BAR 4 at 0x3000"
    assert str(msix).endswith("enabled")


def test_express() -> None:
    payload = struct.pack("<HIHHIHH", 0x0002, 1 << 28 | 2, 0x0020, 0, 0x43, 0, 0x0042)
    found = one(space([(CapabilityId.EXPRESS, payload)]))
    assert str(found) == ("type endpoint, payload 256 of 512 bytes, function-level reset, link x4 5 GT/s of x4 8 GT/s")
    inside = one(space([(CapabilityId.EXPRESS, struct.pack("<HIHHIHH", 0x0092, 0, 0, 0, 0, 0, 0))]))
    assert str(inside) == "type endpoint in the root complex, payload 128 of 128 bytes, no function-level reset"


def test_small_ones() -> None:
    config = space(
        [
            (CapabilityId.VENDOR, bytes([20])),
            (CapabilityId.SUBSYSTEM, struct.pack("<HHH", 0, 0x8086, 0x1234)),
            (CapabilityId.ADVANCED_FEATURES, bytes([6, 2])),
            (CapabilityId.VPD, b"\0\0"),
            (0x7F, b"\0\0"),
        ]
    )
    assert [(each.name, str(each)) for each in decode(config)] == [
        ("vendor", "length 20"),
        ("subsystem", "id 8086:1234"),
        ("advanced features", "function-level reset"),
        ("vpd", ""),
        ("0x7f", ""),
    ]


def test_extended_ones() -> None:
    config = space(
        [],
        [
            (ExtendedCapabilityId.AER, struct.pack("<IIIII", 1 << 14 | 1 << 20, 0, 0, 0x2000, 0)),
            (ExtendedCapabilityId.SERIAL_NUMBER, struct.pack("<II", 0xFF010203, 0x00112233)),
            (ExtendedCapabilityId.VENDOR, struct.pack("<I", 0x0102_1ABC)),
            (ExtendedCapabilityId.ACS, struct.pack("<HH", 0x1D, 0x04)),
            (ExtendedCapabilityId.ARI, struct.pack("<HH", 0x0100, 0)),
            (ExtendedCapabilityId.ATS, struct.pack("<HH", 0, 0x8000)),
            (ExtendedCapabilityId.SRIOV, struct.pack("<IHHHHHHHHHH", 0, 1, 0, 8, 7, 4, 0, 16, 1, 0, 0x10CA)),
            (ExtendedCapabilityId.PRI, struct.pack("<HHII", 1, 0, 32, 0)),
            (ExtendedCapabilityId.PASID, struct.pack("<HH", 0x1400, 1)),
            (ExtendedCapabilityId.DVSEC, struct.pack("<IHH", 0x8086 | 2 << 16, 5, 0)),
            (ExtendedCapabilityId.LTR, bytes(4)),
        ],
    )
    found = {each.name: each for each in decode(config)}
    assert str(found["aer"]) == "uncorrectable [completion timeout] [unsupported request], correctable 0x2000"
    assert str(found["serial number"]) == "number 00-11-22-33-ff-01-02-03"
    assert str(found["vendor"]) == "id 1abc, revision 2, length 16"
    assert str(found["acs"]) == (
        "can [source validation] [request redirect] [completion redirect] [upstream forwarding], "
        "does [request redirect]"
    )
    assert str(found["ari"]) == "next function 1"
    assert str(found["ats"]) == "queue 32, enabled"
    assert str(found["sriov"]) == "virtual functions 4 of 7, first at +16, apart 1, device id 10ca, enabled"
    assert str(found["pri"]) == "outstanding 32, enabled"
    assert str(found["pasid"]) == "bits 20, enabled"
    assert str(found["dvsec"]) == "vendor 8086, revision 2, id 0005"
    assert found["ltr"].to_json() == {"name": "ltr", "offset": found["ltr"].offset, "extended": True}


def test_a_capability_that_leaves_the_space() -> None:
    data = bytearray(256)
    data[6], data[0x34], data[0xFC] = 0x10, 0xFC, CapabilityId.MSIX
    with pytest.raises(MalformedReplyError, match=r"a capability leaves configuration space: offset 0x100"):
        list(decode(FrozenConfig(bytes(data))))


@given(
    st.binary(min_size=64, max_size=64)
    | st.binary(min_size=256, max_size=256)
    | st.binary(min_size=4096, max_size=4096)
)
def test_any_bytes_are_decoded_or_refused(data: bytes) -> None:
    try:
        for each in decode(FrozenConfig(data)):
            assert isinstance(str(each), str)
    except MalformedReplyError:
        pass


def test_bytes_that_were_read_before(tmp_path: Path) -> None:
    (tmp_path / "config").write_bytes(bytes(range(64)))
    config = read_config(tmp_path)
    assert config is not None
    assert not config.whole
    assert config.read16(2) == 0x0302
    assert config.dump(4) == config.dump()[:4] == b"\0\1\2\3"
    with pytest.raises(UnsupportedError, match="open the device to write"):
        config.write8(0, 0)
    with pytest.raises(BoundsError):
        config.read8(64)
    assert read_config(tmp_path / "none") is None
    (tmp_path / "config").write_bytes(b"x")
    with pytest.raises(BoundsError, match="has 1 bytes"):
        read_config(tmp_path)

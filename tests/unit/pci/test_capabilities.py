"""zPCI and atomic operations: decoded as the kernel lays them out, and refused when they are cut off."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_user.device.info import Capability
from vfio_user.errors import MalformedReplyError
from vfio_user.kernel.uapi import AtomicCompletion, DeviceCapability
from vfio_user.pci.capabilities import ZpciGroup, read_atomics, read_zpci

BASE = struct.pack("=QQHHHBBII", 0x1000, 0xFFFF_FFFF, 7, 3, 64, 2, 9, 0xABCD, 5)
GROUP = struct.pack("=QQQHHHBxH6x", 0xFFF, 0xFEE0_0000, 1, 40, 128, 256, 1, 512)
TEXT = "UTIL".encode("cp037").ljust(8, b"\0")
UTIL = struct.pack("=I", len(TEXT)) + TEXT
PFIP = struct.pack("=I", 3) + b"\x01\x02\x03" + bytes(5)


def zpci(identity: DeviceCapability, payload: bytes, version: int = 2) -> Capability:
    return Capability(identity, version, payload)


def everything() -> list[Capability]:
    return [
        zpci(DeviceCapability.ZPCI_BASE, BASE),
        zpci(DeviceCapability.ZPCI_GROUP, GROUP),
        zpci(DeviceCapability.ZPCI_UTIL, UTIL, 1),
        zpci(DeviceCapability.ZPCI_PFIP, PFIP, 1),
    ]


def test_zpci_function() -> None:
    found = read_zpci(everything())
    assert found is not None
    assert (found.start_dma, found.end_dma, found.channel, found.virtual_number) == (0x1000, 0xFFFF_FFFF, 7, 3)
    assert (found.measurement_length, found.function_type, found.group_id, found.handle) == (64, 2, 9, 0xABCD)
    assert found.group == ZpciGroup(0xFFF, 0xFEE0_0000, True, 40, 128, 256, 512, 1)
    assert found.utility == "UTIL"
    assert found.path == b"\x01\x02\x03"


def test_first_version_has_less() -> None:
    found = read_zpci([zpci(DeviceCapability.ZPCI_BASE, BASE, 1), zpci(DeviceCapability.ZPCI_GROUP, GROUP, 1)])
    assert found is not None
    assert found.group is not None
    assert (found.handle, found.group.interpreted_store_size) == (0, 0)
    assert (found.utility, found.path) == ("", b"")


def test_window_that_ends_before_it_begins() -> None:
    with pytest.raises(MalformedReplyError, match=r"0x1000 to 0xfff: none"):
        read_zpci([zpci(DeviceCapability.ZPCI_BASE, struct.pack("=QQ", 0x1000, 0xFFF) + BASE[16:])])


def test_others_have_none() -> None:
    assert read_zpci([]) is None
    assert read_zpci([zpci(DeviceCapability.ZPCI_GROUP, GROUP)]) is None
    assert read_atomics([]) == AtomicCompletion(0)


def test_atomics() -> None:
    atomics = Capability(DeviceCapability.PCI_ATOMIC_COMP, 1, struct.pack("=II", 3, 0))
    assert read_atomics([atomics]) == AtomicCompletion.COMP32 | AtomicCompletion.COMP64
    with pytest.raises(MalformedReplyError, match="can't be struct vfio_device_info_cap_pci_atomic_comp"):
        read_atomics([Capability(DeviceCapability.PCI_ATOMIC_COMP, 1, b"\1\0\0")])


@given(st.integers(0, 3), st.data())
def test_cut_off_anywhere(which: int, data: st.DataObject) -> None:
    capabilities = everything()
    whole = capabilities[which]
    least = {DeviceCapability.ZPCI_PFIP: 7, DeviceCapability.ZPCI_UTIL: len(UTIL)}.get(
        DeviceCapability(whole.identity), len(whole.payload)
    )
    length = data.draw(st.integers(0, least - 1))
    capabilities[which] = Capability(whole.identity, whole.version, whole.payload[:length])
    with pytest.raises(MalformedReplyError):
        read_zpci(capabilities)


@given(st.sampled_from([each for each in DeviceCapability if each.name.startswith("ZPCI")]), st.binary(max_size=80))
def test_hostile_bytes_end_in_the_named_error(identity: DeviceCapability, payload: bytes) -> None:
    capabilities = [zpci(DeviceCapability.ZPCI_BASE, BASE), zpci(identity, payload)]
    with suppress(MalformedReplyError):
        read_zpci(capabilities)

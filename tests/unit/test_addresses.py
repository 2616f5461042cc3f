"""Addresses: what people write for a PCI function, and ranges of IOVAs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_user.addresses import IovaRange, PciAddress, PciId
from vfio_user.errors import ArgumentError

ADDRESSES = st.builds(
    PciAddress,
    domain=st.integers(0, (1 << 32) - 1),
    bus=st.integers(0, 0xFF),
    device=st.integers(0, 31),
    function=st.integers(0, 7),
)


@given(ADDRESSES)
def test_text_of_an_address_is_read_back(address: PciAddress) -> None:
    assert PciAddress.parse(str(address)) == address
    assert PciAddress.parse(f" {str(address).upper()}\n") == address
    assert PciAddress.parse(address) is address


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("01:00.0", "0000:01:00.0"),
        ("1:2.3", "0000:01:02.3"),
        ("0001:fe:1f.7", "0001:fe:1f.7"),
        ("10000:e1:00.0", "10000:e1:00.0"),
        ("/sys/bus/pci/devices/0000:01:00.0", "0000:01:00.0"),
        ("/sys/devices/pci0000:00/0000:00:1c.0/0000:01:00.0/", "0000:01:00.0"),
        ("pci:0000:01:00.0", "0000:01:00.0"),
        ("pci@0000:01:00.0", "0000:01:00.0"),
        ("pci_0000_01_00_0", "0000:01:00.0"),
        ("pci-0000:01:00.0", "0000:01:00.0"),
        ("/dev/dri/by-path/pci-0000:01:00.0", "0000:01:00.0"),
        ("vfio-pci,host=01:00.0", "0000:01:00.0"),
        ("host=0000:01:00.0", "0000:01:00.0"),
        ("0000:AF:00.1", "0000:af:00.1"),
    ],
)
def test_spellings_that_people_use(text: str, spelled: str) -> None:
    assert str(PciAddress.parse(text)) == spelled


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("01:00", "lacks the function: write 01:00.0 for the first"),
        ("0000:01:00", "write 0000:01:00.0"),
        ("8086:1533", "vfio-user list --id 8086:1533 gives the addresses"),
        ("1234:11E8", "vfio-user list --id 1234:11e8 gives the addresses"),
        ("0x8086:0x1533", "vfio-user list --id 8086:1533 gives the addresses"),
        ("[8086:1533]", "vfio-user list --id 8086:1533 gives the addresses"),
        ("pci:v00008086d00001533sv0000", "vfio-user list --id 8086:1533 gives the addresses"),
        ("01:00.0 Ethernet controller: Intel Corporation I210 (rev 03)", "give the address alone: 01:00.0"),
        ("01:00.0 0200: 8086:1533 (rev 03)", "give the address alone: 01:00.0"),
        ("0000:01:00.0,0000:01:00.1", "give the address alone: 0000:01:00.0"),
        ("pci-0000:01:00.0-nvme-1", "it is pci-0000:01:00.0"),
        ("00.0", "it lacks the bus"),
        ("<address domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>", "domain:bus:slot.function"),
        ("/dev/vfio/7", "this is a node"),
        ("/dev/vfio/devices/vfio0", "this is a node"),
        ("vfio0", "this is a node"),
        ("83b8f4f2-509f-382f-3c1e-e6bfe0fa1001", "this is the UUID of a mediated device"),
        ("PCI:1:0:0", "BusID is decimal"),
        ("01:00.8", "functions are 0 to 7"),
        ("0000:01:00:0", "the separators are :, : and ."),
        ("01.00.0", "the separators are"),
        ("eth0", "this is a name; vfio-user list gives addresses, and ls -l /sys/class/*/eth0/device too"),
        ("x:y", "write domain:bus:device.function, such as 0000:01:00.0"),
        ("{0}", "write domain"),
    ],
)
def test_hints_at_what_was_meant(text: str, hint: str) -> None:
    with pytest.raises(ArgumentError, match="is not a PCI address") as caught:
        PciAddress.parse(text)
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "pci",
        "00.0",
        "0000:01:00",
        "01:00.8",
        "01:20.0",
        "100:00.0",
        "0:0:01:00.0",
        "01:00.0/..",
        "/sys/bus/pci/devices/0000:01:00.0/..",
        "/sys/../etc/0000:01:00.0x",
        "123456789:01:00.0",
    ],
)
def test_refusal_shows_the_text(text: str) -> None:
    with pytest.raises(ArgumentError, match=r"PCI"):
        PciAddress.parse(text)


def test_long_text_is_shown_in_part() -> None:
    with pytest.raises(ArgumentError) as caught:
        PciAddress.parse("0" * 100_000)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("thing", [None, 7, b"01:00.0", ["01:00.0"]])
def test_other_types_are_no_addresses(thing: Any) -> None:
    with pytest.raises(ArgumentError, match="is not a PCI address"):
        PciAddress.parse(thing)


@given(st.text(max_size=20))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    try:
        address = PciAddress.parse(text)
    except ArgumentError:
        return
    assert PciAddress.parse(str(address)) == address


@given(ADDRESSES, ADDRESSES)
def test_addresses_are_ordered_as_lspci_lists_them(a: PciAddress, b: PciAddress) -> None:
    assert (a < b) == ((a.slot, a.function) < (b.slot, b.function))


@pytest.mark.parametrize("field", ["domain", "bus", "device", "function"])
@pytest.mark.parametrize("value", [-1, 1 << 32])
def test_number_outside_of_its_field_is_named(field: str, value: int) -> None:
    with pytest.raises(ArgumentError, match=field):
        PciAddress(**{"domain": 0, "bus": 0, "device": 0, "function": 0} | {field: value})


def test_id_matches_by_the_fields_that_are_given() -> None:
    edu = (0x1234, 0x11E8, 0x00FF00)
    assert PciId().matches(*edu)
    assert PciId(0x1234).matches(*edu)
    assert PciId(0x1234, 0x11E8, 0x00FF00).matches(*edu)
    assert not PciId(0x1234, 0x11E9).matches(*edu)
    assert not PciId(class_code=0x010802).matches(*edu)
    assert not PciId(vendor=0).matches(*edu)


@given(st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 64) - 1))
def test_range_contains_its_own_bytes_and_no_other(a: int, b: int) -> None:
    first, last = sorted((a, b))
    here = IovaRange(first, last)
    assert here.contains(first, here.size)
    assert here.contains(last, 1)
    assert not here.contains(first, here.size + 1)
    assert not here.contains(last + 1, 1)
    assert not here.contains(first, 0)


@pytest.mark.parametrize(("first", "last"), [(1, 0), (-1, 5), (0, 1 << 64)])
def test_range_that_can_not_be(first: int, last: int) -> None:
    with pytest.raises(ArgumentError, match="IOVA range"):
        IovaRange(first, last)

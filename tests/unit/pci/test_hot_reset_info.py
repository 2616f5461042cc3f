"""The kernel's reply to the question what a hot reset affects, good and hostile."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.fake_kernel import FakeKernel
from tests.unit.pci.reset_fakes import ResettableDevice
from vfio_user import PciAddress
from vfio_user._uapi import lib
from vfio_user.errors import ArgumentError, MalformedReplyError, UnsupportedError, VfioIoctlError
from vfio_user.pci.hot_reset_info import hot_reset, hot_reset_info, parse


def reply(flags: int, *entries: tuple[int, int, int, int], count: int | None = None) -> bytes:
    body = b"".join(struct.pack("=IHBB", *entry) for entry in entries)
    return struct.pack("=III", 12 + len(body), flags, len(entries) if count is None else count) + body


def test_group_form() -> None:
    info = parse(reply(0, (9, 0, 3, 0x08), (7, 1, 3, 0x01), (7, 0, 3, 0x00)))
    assert not info.by_dev_id
    assert [str(each.address) for each in info.functions] == ["0000:03:00.0", "0000:03:01.0", "0001:03:00.1"]
    assert [each.group for each in info.functions] == [7, 9, 7]
    assert all(each.dev_id is None and each.owned is None for each in info.functions)
    assert info.groups == (7, 9)


def test_form_with_device_ids() -> None:
    flag = lib.VFIO_PCI_HOT_RESET_FLAG_DEV_ID
    entries = [(3, 0, 1, 0), (0, 0, 1, 1), (0xFFFFFFFF, 0, 1, 2)]
    info = parse(reply(flag, *entries))
    assert info.by_dev_id
    assert [(each.dev_id, each.owned, each.group) for each in info.functions] == [
        (3, True, None),
        (None, True, None),
        (None, False, None),
    ]
    assert not info.owned
    assert info.groups == ()
    assert parse(reply(flag | lib.VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED, *entries[:2])).owned
    assert not parse(reply(lib.VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED, *entries[:2])).owned


@pytest.mark.parametrize(
    "raw", [b"", b"\0" * 11, reply(0, count=1), reply(0, (1, 0, 1, 0), count=0xFFFFFFFF), reply(0, *[(1, 0, 1, 0)] * 2)]
)
def test_malformed_replies(raw: bytes) -> None:
    with pytest.raises(MalformedReplyError):
        parse(raw)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    try:
        info = parse(raw)
    except MalformedReplyError:
        return
    count = struct.unpack_from("=I", raw, 8)[0]
    assert len(info.functions) == count
    assert list(info.functions) == sorted(info.functions, key=lambda each: each.address)


@given(st.sets(st.tuples(st.integers(0, 0xFFFF), st.integers(0, 0xFF), st.integers(0, 0xFF)), max_size=40))
def test_what_was_written_is_read(places: set[tuple[int, int, int]]) -> None:
    info = parse(reply(0, *((5, *place) for place in places)))
    addresses = [each.address for each in info.functions]
    assert {(each.domain, each.bus, each.device << 3 | each.function) for each in addresses} == places


def test_long_replies_are_asked_for_again(kernel: FakeKernel) -> None:
    many = [(7, 1 + number // 256, number % 256) for number in range(300)]
    device = kernel.devices["x"] = ResettableDevice(many)
    fd = kernel._open_device("x")
    info = hot_reset_info(fd, "x")
    assert len(info.functions) == 300
    assert info.functions[-1].address == PciAddress(0, 2, 43 >> 3, 43 & 7)
    device.close()


@pytest.mark.parametrize("code", [errno.ENODEV, errno.ENOTTY])
def test_no_hot_reset_at_all(kernel: FakeKernel, code: int) -> None:
    kernel.failing["VFIO_DEVICE_GET_PCI_HOT_RESET_INFO"] = code
    kernel.devices["x"] = ResettableDevice()
    with pytest.raises(UnsupportedError, match="root bus"):
        hot_reset_info(kernel._open_device("x"), "x")
    kernel.failing["VFIO_DEVICE_GET_PCI_HOT_RESET_INFO"] = errno.EIO
    with pytest.raises(VfioIoctlError):
        hot_reset_info(kernel._open_device("x"), "x")


def test_files_of_groups_are_passed_once(kernel: FakeKernel) -> None:
    device = kernel.devices["x"] = ResettableDevice()
    fd = kernel._open_device("x")
    hot_reset(fd, [3, 4, 5], "x")
    hot_reset(fd, [], "x")
    assert device.hot_resets == [3, 0]
    with pytest.raises(ArgumentError, match="twice"):
        hot_reset(fd, [3, 3], "x")

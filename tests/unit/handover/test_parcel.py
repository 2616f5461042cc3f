"""Parcels: what was packed is unpacked, and anything else is refused without a file left open."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_user.addresses import PciAddress
from vfio_user.errors import MalformedReplyError
from vfio_user.handover import Parcel, ParcelDevice, pack, unpack
from vfio_user.iommu import IommuMode
from vfio_user.iommu.files import SpaceFiles
from vfio_user.kernel.fd import OwnedFd


def files(count: int) -> list[OwnedFd]:
    return [OwnedFd(os.memfd_create("x"), f"file {number}") for number in range(count)]


def test_group_form() -> None:
    control, group, first, second = files(4)
    devices = (ParcelDevice(PciAddress(0, 1, 0, 0), first), ParcelDevice(PciAddress(0, 1, 0, 1), second))
    with_files = Parcel(SpaceFiles(IommuMode.TYPE1V2, control, ((7, group),)), devices)
    fields = json.loads(json.dumps(pack(with_files)))
    assert unpack(fields, with_files.files) == with_files
    with_files.close()
    assert all(each.closed for each in (control, group, first, second))
    with_files.close()


def test_form_with_an_iommufd() -> None:
    control, device = files(2)
    parcel = Parcel(SpaceFiles(IommuMode.IOMMUFD, control, ioas=2), (ParcelDevice(PciAddress(0, 1, 0, 0), device, 5),))
    assert unpack(pack(parcel), parcel.files) == parcel
    parcel.close()


GOOD: dict[str, Any] = {"mode": "iommufd", "ioas": 2, "groups": [], "devices": [{"address": "0000:01:00.0", "id": 1}]}


@pytest.mark.parametrize(
    "change",
    [
        {"mode": "fast"},
        {"mode": ["iommufd"]},
        {"ioas": -1},
        {"ioas": True},
        {"ioas": 1 << 32},
        {"groups": [3]},
        {"groups": {"3": 4}},
        {"devices": []},
        {"devices": GOOD["devices"] * 2},
        {"devices": ["0000:01:00.0"]},
        {"devices": [{"address": 7, "id": 1}]},
        {"devices": [{"address": "eth0", "id": 1}]},
        {"devices": [{"address": "0000:01:00.0"}]},
    ],
)
def test_what_does_not_fit(change: dict[str, Any]) -> None:
    opened = files(2)
    with pytest.raises(MalformedReplyError, match="no parcel of devices"):
        unpack(GOOD | change, opened)
    assert all(each.closed for each in opened)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["address", "id"]), inner),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(list(GOOD)), JSON), st.integers(0, 4))
def test_anything_is_unpacked_or_refused(change: dict[str, Any], count: int) -> None:
    opened = files(count)
    try:
        parcel = unpack(GOOD | change, opened)
    except MalformedReplyError:
        assert all(each.closed for each in opened)
    else:
        assert list(parcel.files) == opened
        parcel.close()

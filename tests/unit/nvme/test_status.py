from __future__ import annotations

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfio_user.drivers.nvme.errors import NvmeError, NvmeStatusError
from vfio_user.drivers.nvme.status import Status
from vfio_user.errors import VfioError


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (0x0000, "Successful Completion"),
        (0x0001, "Invalid Command Opcode"),
        (0x0080, "LBA Out of Range"),
        (0x0007, "Command Abort Requested"),
        (0x0101, "Invalid Queue Identifier"),
        (0x0182, "Attempted Write to Read Only Range"),
        (0x0281, "Unrecovered Read Error"),
        (0x0370, "Host Pathing Error"),
        (0x0705, "Vendor Specific (sct 0x7, sc 0x05)"),
        (0x00C1, "Vendor Specific (sct 0x0, sc 0xc1)"),
        (0x0405, "Reserved (sct 0x4, sc 0x05)"),
    ],
)
def test_names(value: int, name: str) -> None:
    assert Status.from_int(value).name == name


def test_all_bits_are_decoded() -> None:
    status = Status.from_int(0b1_1_10_001_10000010)
    assert status == Status(sct=1, sc=0x82, crd=2, more=True, dnr=True)
    assert not status.ok
    assert "do not retry" in str(status)
    assert "more in the error log" in str(status)


@settings(deadline=None)
@given(st.integers(0, 0x7FFF))
def test_every_value_has_a_name_and_only_zero_is_ok(value: int) -> None:
    status = Status.from_int(value)
    assert status.name
    assert status.ok == (value & 0x7FF == 0)


def test_the_exception_carries_the_status_and_pickles() -> None:
    error = NvmeStatusError("read, queue 1, command 7", Status.from_int(0x4080))
    assert isinstance(error, NvmeError)
    assert isinstance(error, VfioError)
    assert (error.sct, error.sc, error.name, error.dnr, error.more) == (
        0,
        0x80,
        "LBA Out of Range",
        True,
        False,
    )
    assert "LBA Out of Range" in str(error)
    assert "read, queue 1, command 7" in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert again.status == error.status
    assert str(again) == str(error)

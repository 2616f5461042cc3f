"""Errors: one base, the built-in types that callers expect, and messages that say all that is known."""

from __future__ import annotations

import errno

import pytest

from vfio_user import errors

PAIRS = [
    (errors.ArgumentError, ValueError),
    (errors.AlignmentError, errors.ArgumentError),
    (errors.BoundsError, IndexError),
    (errors.BoundsError, errors.ArgumentError),
    (errors.ForkedError, errors.ClosedError),
    (errors.DeadlineError, TimeoutError),
    (errors.MemoryLockBusyError, errors.BusyError),
    (errors.MemoryDisabledError, errors.ZappedError),
    (errors.DeviceGoneError, errors.ZappedError),
    (errors.VfioOSError, OSError),
    (errors.VfioIoctlError, errors.VfioOSError),
]


@pytest.mark.parametrize(("error", "base"), PAIRS)
def test_errors_are_caught_by_what_callers_know(error: type[Exception], base: type[Exception]) -> None:
    assert issubclass(error, base)


def test_one_clause_catches_all_of_them() -> None:
    for name in errors.__all__:
        assert issubclass(getattr(errors, name), errors.VfioError)


def test_system_call_that_failed() -> None:
    error = errors.VfioOSError(errno.EBUSY, "open /dev/vfio/7", "Close it first")
    assert error.errno == errno.EBUSY
    assert str(error) == "open /dev/vfio/7: Device or resource busy (EBUSY). Close it first"
    assert str(errors.VfioOSError(errno.EBUSY, "open /dev/vfio/7")).endswith("(EBUSY)")


def test_errno_that_has_no_name() -> None:
    assert "(4095)" in str(errors.VfioOSError(4095, "read"))


def test_ioctl_that_failed() -> None:
    error = errors.VfioIoctlError(errno.EINVAL, "VFIO_DEVICE_SET_IRQS", "0000:01:00.0")
    assert (error.request, error.device, error.errno) == ("VFIO_DEVICE_SET_IRQS", "0000:01:00.0", errno.EINVAL)
    assert str(error) == "VFIO_DEVICE_SET_IRQS on 0000:01:00.0: Invalid argument (EINVAL)"
    assert str(errors.VfioIoctlError(errno.EINVAL, "VFIO_GET_API_VERSION")).startswith("VFIO_GET_API_VERSION: ")


def test_errors_that_carry_more_than_text() -> None:
    assert errors.MemoryLockBusyError("busy", [(12, 0.5)]).holders == ((12, 0.5),)
    assert errors.NotViableError("no", [("0000:01:00.1", "e1000e")]).culprits == (("0000:01:00.1", "e1000e"),)
    assert errors.NotOwnedError("no", ["0000:01:00.1"]).addresses == ("0000:01:00.1",)

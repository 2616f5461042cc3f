"""The log that a device keeps of its writes: what is asked of the kernel, in which order, and what comes back."""

from __future__ import annotations

import errno
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from vfio_user._uapi import ffi
from vfio_user.addresses import IovaRange
from vfio_user.device.dma_log import DmaLog
from vfio_user.errors import AlignmentError, ArgumentError, BusyError, UnsupportedError, VfioIoctlError
from vfio_user.kernel.uapi import DeviceFeature

START, STOP, REPORT = (
    DeviceFeature.DMA_LOGGING_START,
    DeviceFeature.DMA_LOGGING_STOP,
    DeviceFeature.DMA_LOGGING_REPORT,
)


class LoggingDevice:
    """A device that logs with pages of its own size, and has written to the second page of whatever is asked."""

    def __init__(self) -> None:
        self.name = "0000:01:00.0"
        self.features = self
        self.asked: list[tuple[DeviceFeature, dict[str, int]]] = []
        self.watched: list[tuple[int, int]] = []
        self.page_size = 8192
        self.failing: dict[DeviceFeature, int] = {}

    def require(self, feature: DeviceFeature) -> None:
        if feature in self.failing:
            raise UnsupportedError(f"{self.name} has no feature {feature.name}")

    def set(self, feature: DeviceFeature, ctype: str | None = None, **fields: int) -> object:
        self._note(feature, fields)
        if feature == START:
            array = ffi.cast("struct vfio_device_feature_dma_logging_range *", fields["ranges"])
            self.watched = [(array[n].iova, array[n].length) for n in range(fields["num_ranges"])]
        return SimpleNamespace(data=SimpleNamespace(page_size=self.page_size))

    def get(self, feature: DeviceFeature, ctype: str, **fields: int) -> None:
        self._note(feature, fields)
        ffi.cast("uint64_t *", fields["bitmap"])[0] |= 2

    def _note(self, feature: DeviceFeature, fields: dict[str, int]) -> None:
        self.asked.append((feature, fields))
        if feature in self.failing:
            raise VfioIoctlError(self.failing[feature], "VFIO_DEVICE_FEATURE")


@pytest.fixture
def device() -> LoggingDevice:
    return LoggingDevice()


@pytest.fixture
def log(device: LoggingDevice) -> DmaLog:
    return DmaLog(cast("Any", device))


def refused(act: Callable[[], object], code: int) -> None:
    with pytest.raises(VfioIoctlError) as caught:
        act()
    assert caught.value.errno == code


def test_start_report_stop(device: LoggingDevice, log: DmaLog) -> None:
    with log:
        assert log.start([IovaRange(0, 0xFFFF), IovaRange(0x10_0000, 0x10_FFFF)]) == 8192
        assert device.watched == [(0, 0x10000), (0x10_0000, 0x10000)]
        assert list(log.report(0x4000, 0x8000)) == [0x5000]
        assert [each.size for each in log.report(0x4000, 0x8000, page_size=8192).ranges()] == [8192]
        assert repr(log) == "<DmaLog of 0000:01:00.0>"
    assert repr(log) == "<DmaLog of 0000:01:00.0 stopped>"
    log.stop()
    assert [feature for feature, _ in device.asked] == [START, REPORT, REPORT, STOP]


def test_order_is_kept(device: LoggingDevice, log: DmaLog) -> None:
    with pytest.raises(ArgumentError, match="does not log"):
        log.report(0, 4096)
    with pytest.raises(ArgumentError, match="no ranges"):
        log.start([])
    log.start([IovaRange(0, 4095)])
    with pytest.raises(BusyError, match="logs already"):
        log.start([IovaRange(0, 4095)])
    with pytest.raises(AlignmentError):
        log.report(1, 4096)


def test_refusals(device: LoggingDevice, log: DmaLog) -> None:
    device.failing[START] = errno.EINVAL
    refused(lambda: log.start([IovaRange(0, 4095), IovaRange(0, 4095)]), errno.EINVAL)
    assert not log.started
    with pytest.raises(UnsupportedError, match="DMA_LOGGING_START"):
        DmaLog(cast("Any", device))


def test_log_that_a_reset_has_stopped(device: LoggingDevice, log: DmaLog) -> None:
    log.start([IovaRange(0, 4095)])
    device.failing[STOP] = errno.EINVAL
    log.stop()
    device.failing[STOP] = errno.EIO
    log.start([IovaRange(0, 4095)])
    refused(log.stop, errno.EIO)

from __future__ import annotations

import errno
import signal
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from vfio_user._uapi import ffi, lib
from vfio_user.errors import ArgumentError, MalformedReplyError, VfioIoctlError
from vfio_user.kernel import ioctl as seam
from vfio_user.kernel.ioctl import (
    MAX_REPLY,
    Request,
    capabilities,
    feature_get,
    feature_probe,
    feature_set,
    ioctl,
    ioctl_many,
    query,
    requests,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from vfio_user._uapi import CData

    Install = Callable[[Callable[[CData], int]], "Kernel"]

FD = 77


class Kernel:
    """Stands in for the kernel: remembers the calls, and answers with a function."""

    def __init__(self, answer: Callable[[CData], int]) -> None:
        self.answer = answer
        self.calls: list[int] = []

    def __call__(self, fd: int, number: int, argument: CData) -> int:
        assert fd == FD
        self.calls.append(number)
        return self.answer(argument)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Install:
    def install(answer: Callable[[CData], int]) -> Kernel:
        stand_in = Kernel(answer)
        monkeypatch.setattr(seam, "system_call", stand_in)
        return stand_in

    return install


def region(argument: CData) -> CData:
    return ffi.cast("struct vfio_region_info *", argument)


def feature(argument: CData) -> CData:
    return ffi.cast("struct vfio_device_feature *", argument)


def payload(argument: CData, ctype: str) -> CData:
    return ffi.cast(f"{ctype} *", ffi.addressof(feature(argument)[0], "data"))


# ioctl


def test_result_and_integer_argument(kernel: Install) -> None:
    seen = []

    def answer(argument: CData) -> int:
        seen.append(int(ffi.cast("uintptr_t", argument)))
        return 1

    double = kernel(answer)
    assert ioctl(FD, requests.VFIO_CHECK_EXTENSION, 9) == 1
    assert ioctl(FD, requests.VFIO_GET_API_VERSION) == 1
    assert seen == [9, 0]
    assert double.calls == [lib.VFIO_CHECK_EXTENSION, lib.VFIO_GET_API_VERSION]


def test_failure_names_request_device_and_errno(kernel: Install) -> None:
    kernel(lambda _: -errno.EBUSY)
    with pytest.raises(VfioIoctlError) as caught:
        ioctl(FD, requests.VFIO_DEVICE_RESET, device="0000:01:00.0")
    assert caught.value.errno == errno.EBUSY
    assert caught.value.request == "VFIO_DEVICE_RESET"
    assert caught.value.device == "0000:01:00.0"
    assert "VFIO_DEVICE_RESET on 0000:01:00.0" in str(caught.value)


def test_interrupted_calls_are_made_again(kernel: Install) -> None:
    answers = iter([-errno.EINTR, -errno.EINTR, 5])
    double = kernel(lambda _: next(answers))
    assert ioctl(FD, requests.VFIO_DEVICE_RESET) == 5
    assert len(double.calls) == 3


def test_a_signal_handler_that_raises_ends_the_retries(kernel: Install) -> None:
    class Enough(Exception):
        pass

    def handler(number: int, frame: object) -> None:
        raise Enough

    def answer(_: CData) -> int:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        return -errno.EINTR

    kernel(answer)
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with pytest.raises(Enough):
            ioctl(FD, requests.VFIO_DEVICE_RESET)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_the_real_kernel_refuses_a_descriptor_that_is_none() -> None:
    with pytest.raises(VfioIoctlError) as caught:
        ioctl(-1, requests.VFIO_GET_API_VERSION)
    assert caught.value.errno == errno.EBADF


def test_many_reports_how_far_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = ffi.new("struct vfio_iommu_type1_dma_map[]", 5)

    def many(fd: int, number: int, args: CData, stride: int, count: int, done: CData) -> int:
        assert (fd, number, stride, count) == (FD, lib.VFIO_IOMMU_MAP_DMA, 32, 5)
        done[0] = 3
        return -errno.ENOSPC

    monkeypatch.setattr(seam, "system_call_many", many)
    assert ioctl_many(FD, requests.VFIO_IOMMU_MAP_DMA, maps) == (3, errno.ENOSPC)


def test_many_of_none_is_nothing() -> None:
    assert ioctl_many(-1, requests.VFIO_IOMMU_MAP_DMA, ffi.new("struct vfio_iommu_type1_dma_map[]", 0)) == (0, 0)


# Requests


def test_private_request() -> None:
    assert Request.private("MINE", 200) == Request("MINE", ord(";") << 8 | 200)
    assert Request.private("SAME", 107).number == lib.VFIO_DEVICE_GET_INFO


@pytest.mark.parametrize("number", [-1, 256, 1 << 40])
def test_private_request_that_does_not_fit(number: int) -> None:
    with pytest.raises(ArgumentError, match=r"MINE: number -?\d+ is not within 0..255"):
        Request.private("MINE", number)


# query


def test_a_reply_that_fits_takes_one_call(kernel: Install) -> None:
    def answer(argument: CData) -> int:
        info = region(argument)
        assert (info.argsz, info.index) == (32, 3)
        info.size = 4096
        return 0

    double = kernel(answer)
    reply = query(FD, requests.VFIO_DEVICE_GET_REGION_INFO, "struct vfio_region_info", index=3)
    assert (reply.data.size, len(reply.raw), len(double.calls)) == (4096, 32, 1)


def test_a_longer_reply_is_asked_for_again_whole(kernel: Install) -> None:
    def answer(argument: CData) -> int:
        info = region(argument)
        assert info.index == 2, "input has to be there in the second call as well"
        if info.argsz < 80:
            info.argsz, info.cap_offset = 80, 0
            return 0
        info.cap_offset = 32
        head = ffi.cast("struct vfio_info_cap_header *", ffi.cast("char *", argument) + 32)
        head.id, head.version, head.next = 1, 1, 0
        return 0

    double = kernel(answer)
    reply = query(FD, requests.VFIO_DEVICE_GET_REGION_INFO, "struct vfio_region_info", index=2)
    assert len(double.calls) == 2
    assert len(reply.raw) == 80
    assert list(capabilities(reply.raw, reply.data.cap_offset)) == [(1, 1, 32)]


def test_data_outlives_the_reply(kernel: Install) -> None:
    def answer(argument: CData) -> int:
        region(argument).size = 123
        return 0

    kernel(answer)
    data = query(FD, requests.VFIO_DEVICE_GET_REGION_INFO, "struct vfio_region_info").data
    junk = [bytearray(32) for _ in range(1000)]
    assert data.size == 123
    assert len(junk) == 1000


def test_an_absurd_length_is_refused(kernel: Install) -> None:
    def answer(argument: CData) -> int:
        region(argument).argsz = MAX_REPLY + 1
        return 0

    kernel(answer)
    with pytest.raises(MalformedReplyError, match=f"VFIO_DEVICE_GET_REGION_INFO on x: .* {MAX_REPLY + 1} bytes"):
        query(FD, requests.VFIO_DEVICE_GET_REGION_INFO, "struct vfio_region_info", device="x")


def test_growth_without_end_is_refused(kernel: Install) -> None:
    def answer(argument: CData) -> int:
        region(argument).argsz += 8
        return 0

    double = kernel(answer)
    with pytest.raises(MalformedReplyError, match="still grows"):
        query(FD, requests.VFIO_DEVICE_GET_REGION_INFO, "struct vfio_region_info")
    assert len(double.calls) < 20


def test_requests_that_say_enospc_grow_by_their_count(kernel: Install) -> None:
    def answer(argument: CData) -> int:
        info = ffi.cast("struct vfio_pci_hot_reset_info *", argument)
        room = (info.argsz - 12) // 8
        info.count = 3
        if room < 3:
            return -errno.ENOSPC
        for index in range(3):
            info.devices[index].devfn = index
        return 0

    kernel(answer)
    reply = query(
        FD,
        requests.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO,
        "struct vfio_pci_hot_reset_info",
        needed=lambda info: 12 + 8 * int(info.count),
    )
    assert [reply.data.devices[index].devfn for index in range(reply.data.count)] == [0, 1, 2]
    assert len(reply.raw) == 36


def test_enospc_without_growth_ends(kernel: Install) -> None:
    kernel(lambda _: -errno.ENOSPC)
    with pytest.raises(MalformedReplyError, match="still grows"):
        query(
            FD,
            requests.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO,
            "struct vfio_pci_hot_reset_info",
            needed=lambda _: 0,
        )
    with pytest.raises(VfioIoctlError):
        query(FD, requests.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, "struct vfio_pci_hot_reset_info")


def test_an_unknown_member_is_an_error() -> None:
    with pytest.raises(AttributeError):
        query(FD, requests.VFIO_DEVICE_GET_REGION_INFO, "struct vfio_region_info", no_such=1)


# Features


def test_feature_get(kernel: Install) -> None:
    def answer(argument: CData) -> int:
        assert feature(argument).argsz == 16
        assert feature(argument).flags == lib.VFIO_DEVICE_FEATURE_GET | lib.VFIO_DEVICE_FEATURE_MIGRATION
        payload(argument, "struct vfio_device_feature_migration").flags = 5
        return 0

    kernel(answer)
    reply = feature_get(FD, lib.VFIO_DEVICE_FEATURE_MIGRATION, "struct vfio_device_feature_migration")
    assert (reply.data.flags, reply.value, len(reply.raw)) == (5, 0, 8)


def test_feature_get_with_a_flexible_array(kernel: Install) -> None:
    ranges = [{"offset": 0, "length": 4096}, {"offset": 8192, "length": 4096}]

    def answer(argument: CData) -> int:
        data = payload(argument, "struct vfio_device_feature_dma_buf")
        assert feature(argument).argsz == 8 + 16 + 2 * 16
        assert (data.region_index, data.nr_ranges, data.dma_ranges[1].offset) == (2, 2, 8192)
        return 42

    kernel(answer)
    reply = feature_get(
        FD,
        lib.VFIO_DEVICE_FEATURE_DMA_BUF,
        "struct vfio_device_feature_dma_buf",
        region_index=2,
        nr_ranges=2,
        dma_ranges=ranges,
    )
    assert reply.value == 42


def test_feature_set_structure_bytes_and_nothing(kernel: Install) -> None:
    seen: list[bytes] = []

    def answer(argument: CData) -> int:
        head = feature(argument)
        assert head.flags & lib.VFIO_DEVICE_FEATURE_SET
        seen.append(bytes(ffi.buffer(head.data, head.argsz - 8)) if head.argsz > 8 else b"")
        return 0

    kernel(answer)
    entry = "struct vfio_device_low_power_entry_with_wakeup"
    feature_set(FD, lib.VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP, entry, wakeup_eventfd=7)
    feature_set(FD, lib.VFIO_DEVICE_FEATURE_PCI_VF_TOKEN, payload=b"0123456789abcdef")
    feature_set(FD, lib.VFIO_DEVICE_FEATURE_LOW_POWER_EXIT)
    assert seen == [(7).to_bytes(4, sys.byteorder) + bytes(4), b"0123456789abcdef", b""]


def test_feature_set_takes_one_kind_of_data() -> None:
    with pytest.raises(ArgumentError, match="takes one of them"):
        feature_set(FD, 1, "struct vfio_device_feature_mig_state", payload=b"x")
    with pytest.raises(ArgumentError, match="members device_state without a structure"):
        feature_set(FD, 1, device_state=1)


@pytest.mark.parametrize(("result", "has"), [(0, True), (-errno.ENOTTY, False), (-errno.EINVAL, False), (16, True)])
def test_feature_probe(kernel: Install, result: int, has: bool) -> None:
    def answer(argument: CData) -> int:
        wanted = lib.VFIO_DEVICE_FEATURE_PROBE | lib.VFIO_DEVICE_FEATURE_SET | 10
        assert (feature(argument).flags, feature(argument).argsz) == (wanted, 8)
        return result

    kernel(answer)
    operation = lib.VFIO_DEVICE_FEATURE_SET
    assert feature_probe(FD, lib.VFIO_DEVICE_FEATURE_BUS_MASTER, operation) is has


def test_feature_probe_does_not_hide_other_errors(kernel: Install) -> None:
    kernel(lambda _: -errno.EIO)
    with pytest.raises(VfioIoctlError):
        feature_probe(FD, 1, lib.VFIO_DEVICE_FEATURE_GET)


@pytest.mark.parametrize("number", [-1, 0x10000])
def test_feature_number_out_of_range(number: int) -> None:
    with pytest.raises(ArgumentError, match="is not within"):
        feature_probe(FD, number, lib.VFIO_DEVICE_FEATURE_GET)

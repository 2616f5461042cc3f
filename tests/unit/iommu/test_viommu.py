"""Virtual IOMMUs, by a stand-in for a kernel that has some: no emulated IOMMU does."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from vfio_user._uapi import ffi
from vfio_user.errors import ArgumentError, ClosedError, UnsupportedError, VfioIoctlError
from vfio_user.iommu.iommufd import Iommufd, Viommu
from vfio_user.iommu.iommufd.hwpt import Hwpt
from vfio_user.kernel import ioctl
from vfio_user.kernel.fd import OwnedFd
from vfio_user.kernel.ioctl import requests
from vfio_user.kernel.uapi import VeventqType, ViommuType

if TYPE_CHECKING:
    from vfio_user._uapi import CData

    Answer = Callable[[CData], int]


class Kernel:
    """Answers the requests that it was told of, and destroys whatever is there."""

    def __init__(self) -> None:
        self.answers: dict[int, tuple[str, Answer]] = {}
        self.destroyed: list[int] = []

    def __call__(self, fd: int, number: int, argument: CData) -> int:
        if number == requests.IOMMU_DESTROY.number:
            self.destroyed.append(int(ffi.cast("struct iommu_destroy *", argument).id))
            return 0
        ctype, answer = self.answers[number]
        structure = ffi.cast(f"{ctype} *", argument)
        assert structure.size == ffi.sizeof(ctype)
        return answer(structure)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    monkeypatch.setattr(ioctl, "system_call", kernel)
    return kernel


@pytest.fixture
def iommufd() -> Iterator[Iommufd]:
    iommufd = Iommufd(OwnedFd(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC), "/dev/iommu"))
    yield iommufd
    iommufd.close()


@pytest.fixture
def viommu(iommufd: Iommufd) -> Viommu:
    return Viommu(iommufd, 7, b"")


def test_made_on_page_tables_of_a_parent(kernel: Kernel, iommufd: Iommufd) -> None:
    def answer(asked: CData) -> int:
        assert (asked.type, asked.dev_id, asked.hwpt_id, asked.data_len) == (ViommuType.ARM_SMMUV3, 3, 5, 4)
        data = ffi.cast("uint8_t *", asked.data_uptr)
        assert bytes(ffi.buffer(data, 4)) == b"what"
        ffi.buffer(data, 4)[:] = b"told"
        asked.out_viommu_id = 7
        return 0

    kernel.answers[requests.IOMMU_VIOMMU_ALLOC.number] = "struct iommu_viommu_alloc", answer
    with Viommu.alloc(Hwpt(iommufd, 5), 3, ViommuType.ARM_SMMUV3, b"what") as viommu:
        assert (viommu.id, viommu.data) == (7, b"told")
    assert kernel.destroyed == [7]
    with pytest.raises(ClosedError, match="was destroyed"):
        viommu.alloc_vdevice(3, 1)


def test_made_without_data(kernel: Kernel, iommufd: Iommufd) -> None:
    def answer(asked: CData) -> int:
        assert (asked.data_len, asked.data_uptr) == (0, 0)
        return -errno.EOPNOTSUPP

    kernel.answers[requests.IOMMU_VIOMMU_ALLOC.number] = "struct iommu_viommu_alloc", answer
    with pytest.raises(UnsupportedError, match="has no virtual IOMMU of type 1"):
        Viommu.alloc(Hwpt(iommufd, 5), 3, ViommuType.ARM_SMMUV3)


def test_devices_have_numbers_of_the_guest(kernel: Kernel, viommu: Viommu) -> None:
    taken: set[int] = set()

    def answer(asked: CData) -> int:
        assert (asked.viommu_id, asked.dev_id) == (7, 3)
        if asked.virt_id in taken:
            return -errno.EEXIST
        taken.add(asked.virt_id)
        asked.out_vdevice_id = 9
        return 0

    kernel.answers[requests.IOMMU_VDEVICE_ALLOC.number] = "struct iommu_vdevice_alloc", answer
    with viommu.alloc_vdevice(3, 1 << 40) as vdevice:
        assert vdevice.id == 9
        with pytest.raises(VfioIoctlError, match="The number is taken") as caught:
            viommu.alloc_vdevice(3, 1 << 40)
        assert caught.value.errno == errno.EEXIST
    assert kernel.destroyed == [9]


@pytest.mark.parametrize(
    ("kind", "given", "size"),
    [(VeventqType.ARM_SMMUV3, None, 32), (VeventqType.TEGRA241_CMDQV, None, 16), (99, 24, 24)],
)
def test_queue_of_events(kernel: Kernel, viommu: Viommu, kind: int, given: int | None, size: int) -> None:
    fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def answer(asked: CData) -> int:
        assert (asked.viommu_id, asked.type, asked.veventq_depth) == (7, kind, 64)
        asked.out_veventq_id, asked.out_veventq_fd = 11, fd
        return 0

    kernel.answers[requests.IOMMU_VEVENTQ_ALLOC.number] = "struct iommu_veventq_alloc", answer
    with viommu.alloc_event_queue(kind, 64, record_size=given) as queue:
        assert (queue.id, queue.fileno(), queue.record_size) == (11, fd, size)
    assert kernel.destroyed == [11]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_events_of_unknown_size_are_not_asked_for(kernel: Kernel, viommu: Viommu) -> None:
    with pytest.raises(ArgumentError, match="say by record_size how many bytes"):
        viommu.alloc_event_queue(99, 64)
    assert not kernel.answers


def test_queue_of_the_hardware(kernel: Kernel, viommu: Viommu) -> None:
    def answer(asked: CData) -> int:
        assert (asked.viommu_id, asked.type, asked.index) == (7, 1, 2)
        assert (asked.nesting_parent_iova, asked.length) == (0x1_0000_0000, 0x2000)
        asked.out_hw_queue_id = 13
        return 0

    kernel.answers[requests.IOMMU_HW_QUEUE_ALLOC.number] = "struct iommu_hw_queue_alloc", answer
    with viommu.alloc_hw_queue(1, 2, 0x1_0000_0000, 0x2000) as queue:
        assert queue.id == 13
    assert kernel.destroyed == [13]

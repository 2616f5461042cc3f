"""iommufd from its beginning: a device's own node, bound and attached step by step, by bare requests."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import vfio_user
from tests.guest.leaks import nothing_left
from vfio_user import PciAddress, PciFunction
from vfio_user._uapi import ffi
from vfio_user.device.info import device_info
from vfio_user.errors import VfioIoctlError
from vfio_user.iommu.iommufd import Ioas, Iommufd, bind
from vfio_user.kernel.ioctl import ioctl, requests
from vfio_user.pci import Command
from vfio_user.testing import GuestDevice, devices

Find = Callable[[str], GuestDevice]
KINDS = ("edu", "nvme", "virtio-net")


@pytest.fixture
def function(vfio_device: Find) -> PciFunction:
    return PciFunction(PciAddress.parse(vfio_device("edu").address))


@pytest.fixture
def cdev(function: PciFunction) -> Iterator[int]:
    assert function.cdev is not None
    fd = os.open(function.cdev, os.O_RDWR | os.O_CLOEXEC)
    yield fd
    os.close(fd)


@pytest.fixture
def iommufd() -> Iterator[Iommufd]:
    with nothing_left(), Iommufd() as iommufd:
        yield iommufd


def bind_by_hand(cdev: int, iommufd: int) -> None:
    ctype = "struct vfio_device_bind_iommufd"
    argument = ffi.new(f"{ctype} *", {"argsz": ffi.sizeof(ctype), "iommufd": iommufd})
    ioctl(cdev, requests.VFIO_DEVICE_BIND_IOMMUFD, argument)


def refused(act: Callable[[], object]) -> int:
    with pytest.raises(VfioIoctlError) as caught:
        act()
    return caught.value.errno or 0


def test_bound_device_tells_what_it_is(cdev: int, iommufd: Iommufd) -> None:
    assert refused(lambda: device_info(cdev, "edu")) == errno.EINVAL, "not before it is bound"
    bind_by_hand(cdev, iommufd.fileno())
    assert device_info(cdev, "edu").num_regions >= 9
    assert refused(lambda: bind_by_hand(cdev, iommufd.fileno())) == errno.EINVAL, "once only"


def test_bound_to_what_is_no_iommufd(cdev: int, iommufd: Iommufd) -> None:
    assert refused(lambda: bind_by_hand(cdev, -2)) in (errno.EINVAL, errno.EBADF)
    assert refused(lambda: bind_by_hand(cdev, cdev)) in (errno.EINVAL, errno.EBADFD)
    bind_by_hand(cdev, iommufd.fileno())


def test_attached_and_detached(function: PciFunction, iommufd: Iommufd) -> None:
    with bind(function, iommufd) as device:
        ioas = iommufd.alloc_ioas()
        for _ in range(2):
            assert device.attach_pt(ioas) not in (0, ioas.id), "page tables that the kernel made"
            device.detach_pt()
        absent = Ioas(iommufd, 0xFFFF_FFFF)
        assert refused(lambda: device.attach_pt(absent)) == errno.ENOENT
        device.attach_pt(ioas)


def test_bus_mastering_is_off_until_it_is_turned_on(vfio_device: Find, iommu_mode: str) -> None:
    with nothing_left(), vfio_user.open(vfio_device("edu").address, mode=iommu_mode) as pci:
        for enable in (False, True, False):
            pci.set_master(enable)
            assert bool(pci.config.command & Command.MASTER) is enable


@pytest.mark.parametrize(("kind", "which"), [("edu", "msi"), ("nvme", "msix")])
def test_each_vector_fires_once_when_it_is_triggered(vfio_device: Find, iommu_mode: str, kind: str, which: str) -> None:
    with nothing_left(), vfio_user.open(vfio_device(kind).address, mode=iommu_mode) as pci:
        index = pci.irqs.msi if which == "msi" else pci.irqs.msix
        with index.enable(min(index.count, 16)) as vectors:
            for vector in vectors:
                assert vector.drain() == 0
                index.trigger(vector.number)
                assert vector.wait(10) == 1
                assert [each.drain() for each in vectors] == [0] * len(vectors)
        index.disable()


def test_devices_open_beside_each_other(iommu_mode: str) -> None:
    """Each with an address space of its own, all at once: nobody waits for another's turn, nobody is left out."""
    found = [each for each in devices() if each.kind in KINDS]
    assert len(found) == len(KINDS)

    def use(device: GuestDevice) -> int:
        with vfio_user.open(device.address, mode=iommu_mode) as pci, pci.dma_alloc(4096):
            return pci.config.vendor_id

    with nothing_left(), ThreadPoolExecutor(len(found)) as pool:
        for _ in range(3):
            assert all(0 < vendor < 0xFFFF for vendor in pool.map(use, found))

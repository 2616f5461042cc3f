"""The edu driver on the emulated device, over every IOMMU mode."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

import vfio_user
from tests.guest.leaks import nothing_left
from vfio_user.drivers.edu import DMA_COMMAND, DmaCommand, Edu
from vfio_user.errors import BoundsError, BusyError, UnsupportedError
from vfio_user.pci import Command
from vfio_user.testing import GuestDevice

Find = Callable[[str], GuestDevice]


def test_what_it_is_and_does(vfio_device: Find, iommu_mode: str) -> None:
    with nothing_left(), vfio_user.open(vfio_device("edu").address, mode=iommu_mode) as pci:
        with Edu(pci) as edu:
            assert edu.identification == 0x010000ED
            assert edu.is_alive()
            for number in (0, 1, 5, 10, 12, 20):
                assert edu.factorial(number) == math.factorial(number) % (1 << 32)
            assert pci.config.command & Command.MASTER
        assert not pci.config.command & Command.MASTER


def test_one_driver_at_a_time(vfio_device: Find) -> None:
    with vfio_user.open(vfio_device("edu").address) as pci:
        with Edu(pci), pytest.raises(BusyError, match=r"driven by Edu"), Edu(pci):
            raise AssertionError("two drivers drive one device")
        with Edu(pci) as edu:
            assert edu.factorial(3) == 6


def test_it_refuses_other_devices(vfio_device: Find) -> None:
    with vfio_user.open(vfio_device("nvme").address) as pci, pytest.raises(UnsupportedError, match=r"does not drive"):
        Edu(pci)


def test_wrong_numbers_and_ranges(vfio_device: Find) -> None:
    with vfio_user.open(vfio_device("edu").address) as pci, Edu(pci) as edu, edu.alloc(8192) as buffer:
        for number in (-1, 1 << 32):
            with pytest.raises(BoundsError):
                edu.factorial(number)
        with pytest.raises(BoundsError, match=r"do not fit"):
            edu.copy_to_device(buffer)
        with pytest.raises(BoundsError):
            edu.copy_to_device(buffer[:16], offset=4090)
        assert edu.factorial(4) == 24


def test_transfer_that_was_left_behind(vfio_device: Find) -> None:
    """Who started it has died, as far as the device can tell: it ends first, and is not taken for the next one."""
    address = vfio_device("edu").address
    for _ in range(3):
        with vfio_user.open(address) as pci:
            with Edu(pci) as edu, edu.alloc() as buffer:
                edu.regs.dma_source.write(buffer.iova)
                edu.regs.dma_destination.write(0x40000)
                edu.regs.dma_count.write(16)
            pci.bar(0).write64(DMA_COMMAND, DmaCommand.compose(start=1, interrupt=1))
        with vfio_user.open(address) as pci, Edu(pci) as edu, edu.alloc() as buffer:
            buffer[:5] = b"alive"
            edu.copy_to_device(buffer[:5])
            edu.copy_from_device(buffer[100:105])
            assert bytes(buffer[100:105]) == b"alive"


def test_it_works_after_a_reset(vfio_device: Find) -> None:
    with vfio_user.open(vfio_device("edu").address) as pci, Edu(pci) as edu, edu.alloc() as buffer:
        pci.reset()
        assert edu.factorial(6) == 720
        buffer.view[:4] = b"edu!"
        edu.copy_to_device(buffer[:4])
        edu.copy_from_device(buffer[8:12])
        assert bytes(buffer[8:12]) == b"edu!"

"""Eventfds that ring doorbells: the kernel writes the register, whoever signals."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

import vfio_user
from tests.guest.leaks import nothing_left
from vfio_user import PciDevice
from vfio_user.errors import (
    AlignmentError,
    ArgumentError,
    BoundsError,
    BusyError,
    ClosedError,
    VfioIoctlError,
)
from vfio_user.testing import GuestDevice

Find = Callable[[str], GuestDevice]
LIVENESS, FACTORIAL = 0x04, 0x08


@pytest.fixture
def pci(vfio_device: Find) -> Iterator[PciDevice]:
    with nothing_left(), vfio_user.open(vfio_device("edu").address) as pci:
        yield pci


def test_signal_writes_the_register(pci: PciDevice) -> None:
    bar = pci.bar(0)
    bar.write32(LIVENESS, 0)
    with bar.ioeventfd(LIVENESS, 0x1234_5678) as doorbell, bar.ioeventfd(FACTORIAL, 5) as other:
        assert repr(doorbell) == f"<IoEventFd {bar.name}+0x4 = 0x12345678, 32 bits>"
        doorbell.signal()
        assert bar.poll_until(LIVENESS, 0xFFFF_FFFF, ~0x1234_5678 & 0xFFFF_FFFF, 10)
        other.signal()
        bar.poll_until(FACTORIAL, 0xFFFF_FFFF, 120, 10)
        with pytest.raises(BusyError, match="writes 0x5 at 0x8 of"):
            bar.ioeventfd(FACTORIAL, 5)
        bar.ioeventfd(FACTORIAL, 6).close()
        # A reset takes nothing of it away, and while the memory is off nothing happens.
        pci.config.set_command(disable=0x2)
        doorbell.signal()
        pci.config.set_command(enable=0x2)
        pci.reset()
        bar.write32(LIVENESS, 0)
        doorbell.signal()
        bar.poll_until(LIVENESS, 0xFFFF_FFFF, ~0x1234_5678 & 0xFFFF_FFFF, 10)
    doorbell.close()
    with pytest.raises(ClosedError):
        doorbell.signal()
    with bar.ioeventfd(FACTORIAL, 5):
        pass


def test_another_process_rings(pci: PciDevice) -> None:
    bar = pci.bar(0)
    with bar.ioeventfd(LIVENESS, 1) as doorbell:
        ring = "import os, sys; os.eventfd_write(int(sys.argv[1]), 1)"
        number = doorbell.fileno()
        subprocess.run([sys.executable, "-c", ring, str(number)], check=True, timeout=60, pass_fds=(number,))
        bar.poll_until(LIVENESS, 0xFFFF_FFFF, 0xFFFF_FFFE, 10)


def test_ends_with_its_device(vfio_device: Find) -> None:
    with nothing_left():
        pci = vfio_user.open(vfio_device("edu").address)
        doorbell = pci.bar(0).ioeventfd(LIVENESS, 1)
        pci.close()
        doorbell.close()


def test_wrong_ones_are_refused(pci: PciDevice, vfio_device: Find) -> None:
    bar = pci.bar(0)
    for offset, value, width, kind in (
        (LIVENESS, 1, 3, ArgumentError),
        (LIVENESS + 1, 1, 4, AlignmentError),
        (bar.size, 1, 4, BoundsError),
        (LIVENESS, 1 << 32, 4, BoundsError),
        (LIVENESS, -1, 4, BoundsError),
    ):
        with pytest.raises(kind):
            bar.ioeventfd(offset, value, width=width)
    with pytest.raises(VfioIoctlError, match="memory and ports of BARs") as caught:
        pci.vdev.region(7).ioeventfd(4, 0, width=2)
    assert caught.value.errno == errno.EINVAL
    with vfio_user.open(vfio_device("nvme").address) as nvme:
        table = next(each for each in nvme.config.capabilities() if each.identity == 0x11)
        where = nvme.config.read32(table.offset + 4)
        with pytest.raises(VfioIoctlError, match="MSI-X table"):
            nvme.bar(where & 7).ioeventfd(where & ~7, 0)

"""What the kernel says of a device by interrupts of its own: errors (ERR), and requests to give it back (REQ)."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import vfio_user
from tests.guest.leaks import nothing_left
from vfio_user import PciDevice, testing
from vfio_user.drivers import ReleaseOnRequest
from vfio_user.drivers.edu import Edu
from vfio_user.errors import BusyError, ClosedError, DeadlineError
from vfio_user.pci import Command, ExtendedCapabilityId
from vfio_user.testing import GuestDevice

Find = Callable[[str], GuestDevice]
BUS = Path("/sys/bus/pci")
WRITE = "import sys; open(sys.argv[1], 'w').write(sys.argv[2])"


# -- errors


@pytest.fixture
def card(vfio_device: Find) -> GuestDevice:
    return vfio_device("virtio-net")


@pytest.fixture
def pci(card: GuestDevice, iommu_mode: str) -> Iterator[PciDevice]:
    with nothing_left(), vfio_user.open(card.address, mode=iommu_mode) as pci:
        yield pci


def test_errors_are_told(pci: PciDevice, card: GuestDevice) -> None:
    aer = pci.config.find(ExtendedCapabilityId.AER)
    assert aer is not None
    assert pci.config.read32(aer + 4) == 0, "no error yet"
    (err,) = pci.irqs.err.enable(1)
    testing.hmp(f"pcie_aer_inject_error {card.name} BAD_TLP")  # correctable: the kernel keeps that to itself
    with pytest.raises(DeadlineError):
        err.wait(0.5)
    for turn in range(2):
        testing.hmp(f"pcie_aer_inject_error {card.name} COMP_TIME")
        assert err.wait(30) == 1, turn
    pci.irqs.err.trigger()
    assert err.wait(5) == 1
    # An error is no reset: the device goes on, and so does whoever waits.
    assert pci.bar(4).read8(0x14) == 0, "virtio: device status"
    pci.reset()
    testing.hmp(f"pcie_aer_inject_error {card.name} COMP_TIME")
    assert err.wait(30) == 1


def test_fatal_error_is_told(pci: PciDevice, card: GuestDevice) -> None:
    """The kernel resets the slot by itself, which switches decoding off; after that the device can be used."""
    (err,) = pci.irqs.err.enable(1)
    testing.hmp(f"pcie_aer_inject_error {card.name} MALF_TLP")
    assert err.wait(30) == 1
    deadline = time.monotonic() + 60
    while pci.config.vendor_id != 0x1AF4 or pci.config.command & Command.MEMORY:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    pci.reset()
    pci.config.set_command(enable=Command.MEMORY)
    assert pci.bar(4).read8(0x14) == 0, "virtio: device status"


# -- requests


@contextmanager
def taking_away(address: str) -> Iterator[subprocess.Popen[bytes]]:
    """Unbind in another process, which the kernel keeps waiting; bind again afterwards."""
    command = [sys.executable, "-c", WRITE, str(BUS / "devices" / address / "driver/unbind"), address]
    with subprocess.Popen(command) as taker:
        yield taker
        assert taker.wait(60) == 0
    assert not (BUS / "devices" / address / "driver").exists()
    (BUS / "drivers/vfio-pci/bind").write_text(address)


def work(edu: Edu, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        edu.factorial(5)


def test_device_is_given_back_when_it_is_asked_for(vfio_device: Find, iommu_mode: str) -> None:
    address = vfio_device("edu").address
    with (
        nothing_left(),
        vfio_user.open(address, mode=iommu_mode) as pci,
        Edu(pci) as edu,
        edu.alloc() as buffer,
        ReleaseOnRequest(pci) as release,
    ):
        view = pci.bar(0).view(0, 4)
        with pytest.raises(BusyError):
            ReleaseOnRequest(pci)
        assert not release.released.wait(0.1)
        buffer[:4] = b"work"
        with taking_away(address):
            with pytest.raises(ClosedError):
                work(edu, 60)
            assert release.released.wait(30)
        assert release.errors == []
        assert pci.closed
        assert bytes(view) == b"\xff" * 4
        view.release()
    with vfio_user.open(address, mode=iommu_mode) as again, Edu(again) as edu:
        assert edu.factorial(5) == 120


def test_call_that_is_in_the_device_is_waited_for(vfio_device: Find) -> None:
    address = vfio_device("edu").address
    entered, leave = threading.Event(), threading.Event()

    def call(device: PciDevice) -> None:
        with device.vdev.user():
            entered.set()
            leave.wait(60)

    with nothing_left(), vfio_user.open(address) as pci, ReleaseOnRequest(pci) as release:
        caller = threading.Thread(target=call, args=(pci,))
        caller.start()
        assert entered.wait(10)
        with taking_away(address) as taker:
            assert not release.released.wait(1)
            assert taker.poll() is None
            leave.set()
            assert release.released.wait(60)
        caller.join(10)
    assert release.errors == []


def test_who_is_not_asked_keeps_the_device(vfio_device: Find) -> None:
    address = vfio_device("edu").address
    with nothing_left(), vfio_user.open(address) as pci:
        with ReleaseOnRequest(pci) as release:
            assert repr(release) == f"<ReleaseOnRequest {address}>"
        release.close()
        assert not pci.closed
        assert pci.irqs.req.vectors == ()
        with ReleaseOnRequest(pci) as again:
            pci.close()
        assert not again.released.is_set()

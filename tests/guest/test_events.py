"""Requests, errors and the end of devices, as the kernel tells of them."""

from __future__ import annotations

import logging
import re
import threading
import time

import pytest

import vfio_user
from tests.guest.driven import DEVICES, asleep, bind_again, wait_for, write
from tests.guest.leaks import nothing_left
from vfio_user import EventKind, testing
from vfio_user.drivers.edu import Edu
from vfio_user.errors import ClosedError, VfioError
from vfio_user.pci import Command


def compute_for_ever(edu: Edu) -> None:
    while True:
        edu.factorial(5)


def test_unbound_while_it_is_driven(iommu_mode: str) -> None:
    """Who unbinds it waits for the driver, which lets go at once; then the device can be bound and used again."""
    address = testing.device("edu").address
    with nothing_left():
        pci = vfio_user.open(address, mode=iommu_mode)
        edu = Edu(pci)
        edu.start()
        with pci.events.serve():
            unbind = threading.Thread(target=write, args=(DEVICES / address / "driver/unbind", address))
            unbind.start()
            with pytest.raises(VfioError):
                compute_for_ever(edu)
            unbind.join(60)
            assert not unbind.is_alive()
        assert pci.closed
        assert not (DEVICES / address / "driver").exists()
    bind_again(address)
    with vfio_user.open(address, mode=iommu_mode) as pci, Edu(pci) as edu:
        assert edu.factorial(5) == 120


@pytest.mark.parametrize("error", ["COMP_TIME", "MALF_TLP"])
def test_an_error_of_the_device(error: str, caplog: pytest.LogCaptureFixture) -> None:
    """Non-fatal and fatal: the device is told apart from memory, and works again after a reset."""
    device = testing.device("virtio-net")
    with nothing_left(), vfio_user.open(device.address) as pci:
        pci.set_master(True)
        with pci.events.serve(), caplog.at_level(logging.WARNING, "vfio_user.events"):
            print(testing.hmp(f"pcie_aer_inject_error {device.name} {error}"))
            wait_for(lambda: "uncorrectable error" in caplog.text, 60)
            wait_for(lambda: not pci.config.command & Command.MASTER, 60)
        print(caplog.text)
        pci.reset()
        assert pci.config.vendor_id == 0x1AF4


def test_a_correctable_error_is_no_event() -> None:
    device = testing.device("virtio-net")
    with vfio_user.open(device.address) as pci:
        pci.events.arm()
        testing.hmp(f"pcie_aer_inject_error -c {device.name} BAD_TLP")
        time.sleep(0.5)
        assert pci.events.poll() is None


def test_a_wake_up_is_an_event() -> None:
    with nothing_left(), vfio_user.open(testing.device("nvme").address) as pci:
        version = pci.bar(0).read32(8)
        with pci.events.serve():
            pci.low_power.enter_with_wakeup()
            assert asleep(pci)
            assert pci.config.vendor_id, "the kernel wakes it for this"
            wait_for(lambda: not pci.low_power.active, 60)
            assert pci.bar(0).read32(8) == version
        pci.low_power.enter_with_wakeup()
        assert asleep(pci)
        assert pci.config.vendor_id
        assert pci.events.wait(60).kind is EventKind.WAKE
        pci.low_power.exit()
        assert pci.bar(0).read32(8) == version


def test_loops_end_with_the_device() -> None:
    pci = vfio_user.open(testing.device("nvme").address)
    seen: list[str] = []
    thread = threading.Thread(target=lambda: seen.extend(event.kind.value for event in pci.events))
    thread.start()
    time.sleep(0.2)
    pci.close()
    thread.join(20)
    assert not thread.is_alive()
    assert seen == []
    with pytest.raises(ClosedError, match=re.escape(pci.name)):
        pci.events.wait(1.0)

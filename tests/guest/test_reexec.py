"""A process is replaced while its device works: the next program finds memory, IOVAs and the device as they were."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import vfio_user
from tests.guest.leaks import nothing_left
from vfio_user.drivers.edu import Edu
from vfio_user.errors import ArgumentError
from vfio_user.handover import carry
from vfio_user.testing import GuestDevice

Find = Callable[[str], GuestDevice]
CARRIER = Path(__file__).with_name("carrier.py")
TOP = CARRIER.parents[2]


@pytest.mark.timeout(240)
def test_memory_and_device_outlive_the_program(vfio_device: Find, iommu_mode: str) -> None:
    command = [sys.executable, str(CARRIER), "first", vfio_device("edu").address, iommu_mode]
    environment = os.environ | {"PYTHONPATH": str(TOP), "PYTHONWARNINGS": "ignore::ResourceWarning"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_can_not_be_carried(vfio_device: Find, iommu_mode: str) -> None:
    with nothing_left():
        try_to_carry(vfio_device("edu").address, iommu_mode)


def try_to_carry(address: str, mode: str) -> None:
    with vfio_user.open_all([address], mode=mode) as devices:
        space = devices.address_space
        with space.alloc(8192, backing="memfd") as ring:
            with space.alloc(4096), pytest.raises(ArgumentError, match="not among the buffers"):
                carry(devices, {"ring": ring})
            with space.alloc(4096) as plain, pytest.raises(ArgumentError, match="has no memory file"):
                carry(devices, {"ring": ring, "plain": plain})
            carried = carry(devices, {"ring": ring})
            assert os.get_inheritable(carried.fd)
            assert os.get_inheritable(ring.fileno())
            carried.cancel()
            carried.cancel()
            assert not os.get_inheritable(ring.fileno())
            with Edu(devices[0]) as edu:  # and all goes on here, with the next buffer too
                ring[:4] = b"here"
                with space.alloc(4096, iova_limit=1 << 28):
                    assert edu.factorial(5) == 120
        with pytest.raises(ArgumentError, match="is not mapped in this address space"):
            carry(devices, {"ring": ring})

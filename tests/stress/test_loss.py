"""Devices that are taken away, and processes that die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import vfio_user
from tests.stress.crew import Crew
from tests.stress.workers import AWAY, ID, hire_for_registers, hire_for_work
from vfio_user import testing
from vfio_user.drivers.edu import Edu
from vfio_user.errors import ClosedError

DEVICES = Path("/sys/bus/pci/devices")

VICTIM = """
import sys, vfio_user
from vfio_user.drivers.edu import Edu
with vfio_user.open(sys.argv[1]) as pci, Edu(pci) as edu, edu.alloc(1 << 20) as buffer:
    print("ready", flush=True)
    while True:
        edu.copy_to_device(buffer[:4000])
        edu.copy_from_device(buffer[8192:12192])
"""


def wait_for(condition: Callable[[], bool], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def test_unplugged_under_load(crew: Crew, seconds: float) -> None:
    """The kernel asks for the device back by REQ; it is given back with views out, and then it is gone."""
    device = testing.device("edu")
    address = device.address
    pci = vfio_user.open(address)
    (req,) = pci.irqs.req.enable(1)
    edu = Edu(pci)
    edu.start()
    hire_for_registers(crew, pci, (*AWAY, ClosedError))
    hire_for_work(crew, edu, (*AWAY, ClosedError))
    view = pci.bar(0).view().cast("I")
    time.sleep(min(seconds, 3) / 3)
    testing.qmp("device_del", id=device.name)
    assert req.wait(60) >= 1
    assert crew.well, crew.wrong
    # Closing waits for nobody for long: readers find the device closed, and views read all-ones.
    edu.stop()
    pci.close()
    assert view[0] == 0xFFFFFFFF
    crew.send_home(all_worked=False)
    print(crew)
    wait_for(lambda: not (DEVICES / address).exists(), 30)
    view.release()
    # And it comes back.
    testing.qmp("device_add", driver="edu", id=device.name, bus="port0", addr="0.0")
    wait_for((DEVICES / address / "vendor").exists, 60)
    (DEVICES / address / "driver_override").write_text("vfio-pci")
    Path("/sys/bus/pci/drivers_probe").write_text(address)
    with vfio_user.open(address) as again, Edu(again) as driver:
        assert driver.factorial(5) == 120


def test_killed_in_the_middle_of_a_transfer(crew: Crew, seconds: float) -> None:
    address = testing.device("edu").address
    end = time.monotonic() + seconds
    turns = 0
    while turns < 3 or time.monotonic() < end:
        with subprocess.Popen([sys.executable, "-c", VICTIM, address], stdout=subprocess.PIPE, text=True) as victim:
            assert victim.stdout is not None
            assert victim.stdout.readline() == "ready\n"
            time.sleep(0.05 * (turns % 5))
            os.kill(victim.pid, signal.SIGKILL)
            victim.wait(20)
        turns += 1
        with vfio_user.open(address) as pci, Edu(pci) as edu, edu.alloc() as buffer:
            assert pci.bar(0).read32(0) == ID
            buffer[:5] = b"alive"
            edu.copy_to_device(buffer[:5])
            edu.copy_from_device(buffer[100:105])
            assert bytes(buffer[100:105]) == b"alive"
    print(f"killed {turns} times")


def test_closed_and_opened_under_load(crew: Crew, seconds: float) -> None:
    """Whoever still uses a device that is closed is told so, and nobody else is."""
    address = testing.device("edu").address
    end = time.monotonic() + seconds / 2
    turns = 0
    while turns < 3 or time.monotonic() < end:
        shift = Crew()
        with vfio_user.open(address) as pci, Edu(pci) as edu:
            hire_for_registers(shift, pci, (*AWAY, ClosedError))
            hire_for_work(shift, edu, (*AWAY, ClosedError))
            time.sleep(0.2)
            if turns % 2:
                pci.reset()
        turns += 1
        shift.send_home(all_worked=False)
    print(f"closed {turns} times")

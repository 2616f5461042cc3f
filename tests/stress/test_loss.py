"""Processes that die, and devices that are closed under load."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import vfio_user
from tests.stress.crew import Crew
from tests.stress.workers import AWAY, ID, hire_for_registers, hire_for_work
from vfio_user import testing
from vfio_user.drivers.edu import Edu
from vfio_user.errors import ClosedError

VICTIM = """
import sys, vfio_user
from vfio_user.drivers.edu import Edu
with vfio_user.open(sys.argv[1]) as pci, Edu(pci) as edu, edu.alloc(1 << 20) as buffer:
    print("ready", flush=True)
    while True:
        edu.copy_to_device(buffer[:4000])
        edu.copy_from_device(buffer[8192:12192])
"""


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

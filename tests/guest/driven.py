"""An edu that another process drives, with or without a monitor."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vfio_user import PciDevice, testing

DEVICES = Path("/sys/bus/pci/devices")

_DRIVER = """
import contextlib, sys, vfio_user
from vfio_user.drivers.edu import Edu
with vfio_user.open(sys.argv[1]) as pci, Edu(pci) as edu, edu.alloc(), (
    vfio_user.Monitor(pci) if sys.argv[2] == "monitor" else contextlib.nullcontext()
):
    print("ready", flush=True)
    for line in sys.stdin:
        print(edu.factorial(int(line)), flush=True)
"""


class Driven:
    """The device, and the process that drives it."""

    def __init__(self, address: str, process: subprocess.Popen[str]) -> None:
        self.address = address
        self.process = process

    def factorial(self, number: int) -> int:
        """Have the driver compute something."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def end(self) -> None:
        """Let the driver go; it must have been well."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(60) == 0


@contextmanager
def driven_edu(*, monitor: bool) -> Iterator[Driven]:
    """Start the driver on the first edu, and end it after the ``with`` block."""
    address = testing.devices("edu")[0].address
    command = [sys.executable, "-c", _DRIVER, address, "monitor" if monitor else "alone"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        driven = Driven(address, process)
        try:
            yield driven
            if process.poll() is None:
                driven.end()
        finally:
            process.kill()


def wait_for(condition: Callable[[], bool], timeout: float) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def write(path: Path, text: str) -> None:
    """Write to a file of sysfs, in a thread of the caller's if need be."""
    path.write_text(text)


def bind_again(address: str) -> None:
    """Bind a device without a driver to vfio-pci."""
    write(DEVICES / address / "driver_override", "vfio-pci")
    write(Path("/sys/bus/pci/drivers_probe"), address)


def asleep(pci: PciDevice, seconds: float = 60.0) -> bool:
    """Wait for the kernel to put a device to sleep, which it does a little after it may; only then can it wake up."""
    status = DEVICES / pci.name / "power/runtime_status"
    deadline = time.monotonic() + seconds
    while status.read_text().strip() != "suspended":
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True

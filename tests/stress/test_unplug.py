"""A device that is taken out of the machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import vfio_user
from tests.stress.crew import Crew
from tests.stress.workers import AWAY, hire_for_registers, hire_for_work
from vfio_user import testing
from vfio_user.drivers.edu import Edu
from vfio_user.errors import ClosedError

DEVICES = Path("/sys/bus/pci/devices")


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

"""Unplugging a device that is driven, by the ACPI hot-plug of QEMU's machines."""

from __future__ import annotations

import subprocess
import sys

import vfio_user
from tests.guest.driven import DEVICES, bind_again, wait_for
from vfio_user import testing
from vfio_user.drivers.edu import Edu

#: Drives an edu until the kernel asks for it back; says which files of its own it opened below /sys after that.
DRIVER = """
import sys, time, vfio_user
from vfio_user.drivers.edu import Edu
from vfio_user.errors import VfioError
address, opened, asked = sys.argv[1], [], []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if asked and event == "open" else None)
pci = vfio_user.open(address)
edu = Edu(pci)
edu.start()
release = pci.events._handlers[vfio_user.EventKind.REQUEST]
pci.events.on(vfio_user.EventKind.REQUEST, lambda event: (asked.append(time.monotonic()), release(event)))
with pci.events.serve(), edu.alloc() as buffer:
    print("ready", flush=True)
    try:
        while True:
            edu.factorial(9)
    except VfioError as error:
        print(type(error).__name__, flush=True)
    while not pci.closed:
        time.sleep(0.01)
print(f"{time.monotonic() - asked[0]:.3f}", [name for name in opened if address in name], flush=True)
"""


def test_unplugged_while_another_process_drives_it() -> None:
    device = testing.device("edu")
    with subprocess.Popen([sys.executable, "-c", DRIVER, device.address], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        testing.qmp("device_del", id=device.name)
        told, touched = process.stdout.readline(), process.stdout.readline()
        print(told, touched)
        assert process.wait(60) == 0
        assert touched.endswith(" []\n"), "it looked at a file of the device in sysfs after it was asked for it"
    wait_for(lambda: not (DEVICES / device.address).exists(), 60)
    testing.qmp("device_add", driver="edu", id=device.name, bus="port0", addr="0.0")
    wait_for((DEVICES / device.address / "vendor").exists, 60)
    bind_again(device.address)
    with vfio_user.open(device.address) as pci, Edu(pci) as edu:
        assert edu.factorial(6) == 720

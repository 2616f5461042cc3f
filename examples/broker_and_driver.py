"""A broker with privilege and a driver without: one opens the device, the other drives it as nobody.

sudo python examples/broker_and_driver.py 0000:01:00.0

As separate programs: vfio-user broker --allow 0000:01:00.0=alice, and vfio_user.borrow("0000:01:00.0") as alice.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from pathlib import Path

import vfio_user
from vfio_user.handover import Broker, Policy, listen

NOBODY = 65534


def drive(address: str, broker: Path) -> None:
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    with vfio_user.borrow(address, broker=broker) as lease:
        (pci,) = lease.devices
        with pci.dma_alloc(4096) as buffer:
            print(f"user {os.getuid()}: register 0 of {pci.name} is {pci.bar(0).read32(0):#010x}, ", end="")
            print(f"it reaches memory at {buffer.iova:#x}", flush=True)


def main(address: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = Path(folder) / "broker.sock"
        with Broker(Policy.parse([f"{address}={NOBODY}"]), listen(path)) as broker:
            signal.signal(signal.SIGCHLD, lambda *_: broker.stop())
            if os.fork() == 0:
                try:
                    drive(address, path)
                finally:
                    os._exit(0)
            broker.serve()


if __name__ == "__main__":
    main(sys.argv[1])

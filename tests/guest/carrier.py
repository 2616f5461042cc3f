"""Two programs in one process: the first opens a device and executes the second, which goes on with it.

``python carrier.py first ADDRESS MODE``; exit code 0 when all went well.
"""

from __future__ import annotations

import os
import sys
import time

import vfio_user
from vfio_user import PciDevice
from vfio_user.drivers.edu import Edu
from vfio_user.handover import carry, resume

LIVENESS, SOURCE, TARGET, COUNT, COMMAND, INSIDE = 0x04, 0x80, 0x88, 0x90, 0x98, 0x40000
PATTERN = bytes(range(64))


def start_dma(pci: PciDevice, source: int, target: int, command: int) -> None:
    """Let edu copy, which takes it a tenth of a second."""
    bar = pci.bar(0)
    for register, value in ((SOURCE, source), (TARGET, target), (COUNT, len(PATTERN)), (COMMAND, command)):
        bar.write64(register, value)


def first(address: str, mode: str) -> None:
    """Open, begin something, and make room for the next program."""
    devices = vfio_user.open_all([address], mode=mode)
    (pci,) = devices
    space = devices.address_space
    ring = space.alloc(8192, backing="memfd", iova_limit=1 << 28)
    pci.set_master(True)
    ring[:64] = PATTERN
    start_dma(pci, ring.iova, INSIDE, 1)
    pci.bar(0).poll_until(COMMAND, mask=1, equals=0, timeout=30.0)
    pci.bar(0).write32(LIVENESS, 0x12345678)
    carried = carry(devices, {"ring": ring})
    start_dma(pci, INSIDE, ring.iova + 4096, 3)  # it is copied while one program follows the other
    os.execv(sys.executable, [sys.executable, __file__, "second", str(carried.fd), address])


def second(fd: str, address: str) -> None:
    """Go on with what the first program has left."""
    resumed = resume(int(fd))
    (pci,) = resumed.devices
    ring = resumed.buffers["ring"]
    assert pci.name == address
    assert pci.bar(0).read32(LIVENESS) == 0x12345678 ^ 0xFFFFFFFF, "the device was not reset"
    assert bytes(ring[:64]) == PATTERN
    deadline = time.monotonic() + 30.0
    while bytes(ring[4096 : 4096 + 64]) != PATTERN:
        assert time.monotonic() < deadline, "the device reached memory all the time"
    assert list(pci.address_space.mappings) == [ring.mapping]
    with Edu(pci) as edu:
        assert edu.factorial(6) == 720  # by an interrupt of this program
        ring[128:132] = b"more"
        edu.copy_to_device(ring[128:132])
        edu.copy_from_device(ring[256:260])
        assert bytes(ring[256:260]) == b"more"
    ring.close()
    assert not pci.address_space.mappings
    with pci.dma_alloc(4096) as another:
        assert another.iova is not None
    resumed.devices.close()
    with vfio_user.open(address) as again:
        assert again.bar(0).read32(0) == 0x010000ED


if __name__ == "__main__":
    {"first": first, "second": second}[sys.argv[1]](*sys.argv[2:])

"""Replace a driver's program while its device works: the device is not reset, and reaches its memory all the time.

python examples/live_update.py 0000:01:00.0
"""

from __future__ import annotations

import os
import sys

import vfio_user
from vfio_user.drivers.edu import DmaCommand, Edu, EduRegisters
from vfio_user.handover import carry, resume


def old_program(address: str) -> None:
    devices = vfio_user.open_all([address])  # not closed: the next program goes on with them
    memory = devices.address_space.alloc(4096, backing="memfd", iova_limit=Edu.IOVA_LIMIT)
    edu = Edu(devices[0])
    edu.start()
    memory[:5] = b"hello"
    edu.copy_to_device(memory[:5])

    carried = carry(devices, {"memory": memory})
    edu.regs.dma_source.write(0x40000)  # the device's own memory
    edu.regs.dma_destination.write(memory.iova + 2048)
    edu.regs.dma_count.write(5)
    edu.regs.dma_command.write(DmaCommand.compose(start=1, to_memory=1))  # goes on while one program follows the other
    print(f"version 1 leaves {address} at work", flush=True)
    os.execv(sys.executable, [sys.executable, __file__, "--resume", str(carried.fd)])


def new_program(fd: int) -> None:
    resumed = resume(fd)
    with resumed.devices as (pci,), resumed.buffers["memory"] as memory:
        EduRegisters(pci.bar(0)).dma_command.wait(10, start=0)
        print(f"version 2 has {pci.name}, which has copied {bytes(memory[2048:2053])!r} meanwhile")
        with Edu(pci) as edu:
            print(f"and has interrupts again: 10! = {edu.factorial(10)}")


if __name__ == "__main__":
    if sys.argv[1] == "--resume":
        new_program(int(sys.argv[2]))
    else:
        old_program(sys.argv[1])

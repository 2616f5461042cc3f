"""Write to an NVMe namespace, read it back, and compare. What was in the first 16 MiB is LOST.

python examples/nvme_read_write.py 0000:01:00.0
"""

from __future__ import annotations

import os
import sys
import time

import vfio_user
from vfio_user.drivers.nvme import Namespace, NvmeController, NvmeStatusError

SIZE = 16 << 20


def many_at_once(namespace: Namespace, buffer: vfio_user.DmaBuffer) -> None:
    """Keep several commands in flight; each is waited for by its handle."""
    commands = [namespace.submit_read(buffer[n * 4096 : (n + 1) * 4096], lba=n * 8) for n in range(32)]
    for command in commands:
        command.wait()
    print(f"{len(commands)} reads were in flight together")


def main(address: str) -> None:
    with vfio_user.open(address) as pci, NvmeController(pci, io_queues=2) as controller:
        namespace = controller.namespaces[0]
        with pci.dma_alloc(SIZE) as buffer:
            data = os.urandom(SIZE)
            buffer[:] = data
            begin = time.monotonic()
            namespace.write_from(buffer, lba=0)  # straight from DMA memory, split into commands
            namespace.flush()
            middle = time.monotonic()
            buffer[:] = bytes(SIZE)
            namespace.read_into(buffer, lba=0)
            end = time.monotonic()
            if bytes(buffer) != data:
                sys.exit("what was read is not what was written")
            print(f"wrote {SIZE >> 20} MiB in {middle - begin:.2f} s, read them in {end - middle:.2f} s: equal")
            many_at_once(namespace, buffer)

        namespace.write(5, b"a few bytes".ljust(namespace.block_size, b"\0"))  # copies, for convenience
        print(namespace.read(5, 1).rstrip(b"\0"))
        try:
            namespace.read_into(bytearray(4096), lba=0)
        except vfio_user.VfioError as error:
            print(f"refused: {error}")
        try:
            controller.get_feature(0xEE)
        except NvmeStatusError as error:
            print(f"the controller says: {error.name}")


if __name__ == "__main__":
    main(sys.argv[1])

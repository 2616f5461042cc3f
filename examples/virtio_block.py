"""Read, write and discard on a virtio block device. What was in its first 4 MiB is LOST.

python examples/virtio_block.py 0000:01:00.0
"""

from __future__ import annotations

import os
import sys

import vfio_user
from vfio_user.drivers.virtio import VirtioBlk, VirtioUnsupportedError

SIZE = 4 << 20


def main(address: str) -> None:
    with vfio_user.open(address) as pci, VirtioBlk(pci) as disk:
        print(f"{disk.get_id()}: {disk.capacity >> 11} MiB, features {disk.features:#x}")
        with pci.dma_alloc(SIZE) as buffer:
            buffer[:] = data = os.urandom(SIZE)
            disk.write_from(buffer, sector=0)  # straight from DMA memory, several requests in flight
            disk.flush()
            buffer[:] = bytes(SIZE)
            disk.read_into(buffer, sector=0)
            print("equal" if bytes(buffer) == data else sys.exit("what was read is not what was written"))
            requests = [disk.submit_read(buffer[n * 4096 : (n + 1) * 4096], sector=8 * n) for n in range(16)]
            for request in requests:
                request.wait()
            print(f"{len(requests)} reads were in flight together")
        try:
            disk.discard(0, 8)
        except VirtioUnsupportedError as error:
            print(f"refused: {error}")


if __name__ == "__main__":
    main(sys.argv[1])

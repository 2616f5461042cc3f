"""Drive QEMU's edu device by its registers: a factorial, announced by an interrupt, and a DMA transfer.

python examples/edu_factorial.py 0000:01:00.0 10
"""

from __future__ import annotations

import sys

import vfio_user

ID, FACTORIAL, STATUS, IRQ_STATUS, IRQ_ACK = 0x00, 0x08, 0x20, 0x24, 0x64
DMA_SOURCE, DMA_DESTINATION, DMA_COUNT, DMA_COMMAND, EDU_BUFFER = 0x80, 0x88, 0x90, 0x98, 0x40000


def main(address: str, number: int) -> None:
    with vfio_user.open(address) as pci:
        pci.set_master(True)  # the device may do DMA and send interrupts; never done without being asked for
        bar = pci.bar(0)
        print(f"identification {bar.read32(ID):#010x}")
        with pci.irqs.msi.enable() as (interrupt,), pci.dma_alloc(4096, iova_limit=1 << 28) as buffer:
            bar.write32(STATUS, 0x80)  # interrupt when the factorial is ready
            bar.write32(FACTORIAL, number)
            interrupt.wait(timeout=5.0)
            print(f"{number}! modulo 2^32 is {bar.read32(FACTORIAL)}")
            bar.write32(IRQ_ACK, bar.read32(IRQ_STATUS))

            for source, destination, command in ((buffer.iova, EDU_BUFFER, 1), (EDU_BUFFER, buffer.iova + 64, 3)):
                buffer[:5] = b"hello"
                bar.write64(DMA_SOURCE, source)
                bar.write64(DMA_DESTINATION, destination)
                bar.write64(DMA_COUNT, 5)
                bar.write64(DMA_COMMAND, command)
                bar.poll_until(DMA_COMMAND, mask=1, equals=0, timeout=5.0)
            print(f"came back by DMA: {bytes(buffer[64:69])!r}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 10)

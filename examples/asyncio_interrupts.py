"""Await interrupts with asyncio, while other work goes on.

python examples/asyncio_interrupts.py 0000:01:00.0
"""

from __future__ import annotations

import asyncio
import sys

import vfio_user
from vfio_user import PciDevice

IRQ_RAISE, IRQ_ACK = 0x60, 0x64


async def raise_some(pci: PciDevice) -> None:
    for number in range(3):
        await asyncio.sleep(0.1)
        pci.bar(0).write32(IRQ_RAISE, 1 << number)


async def main(address: str) -> None:
    with vfio_user.open(address) as pci:
        pci.set_master(True)
        with pci.irqs.msi.enable() as (interrupt,):
            raising = asyncio.create_task(raise_some(pci))
            seen = 0
            async with asyncio.timeout(10):
                async for count in interrupt:
                    seen += count
                    print(f"{count} interrupt(s), {seen} in all")
                    pci.bar(0).write32(IRQ_ACK, 0xFFFFFFFF)
                    if seen >= 3:
                        break
            await raising


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))

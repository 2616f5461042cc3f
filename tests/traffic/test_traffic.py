"""All drivers carry data at the same time, and every byte that comes back is compared with what belongs there."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

import vfio_user
from tests.guest.leaks import nothing_left
from tests.traffic.carriers import BUFFER, PATIENCE, PIECE, BlkCarrier, Carrier, NvmeCarrier, PortCarrier
from vfio_user import DmaBuffer, PciDevice, testing
from vfio_user.drivers.igb import Igb
from vfio_user.drivers.nvme import NvmeController
from vfio_user.drivers.virtio import VirtioBlk

_GIB = 1 << 30


@pytest.fixture
def carriers() -> Iterator[list[Carrier]]:
    """One for each kind of device, ready to begin."""
    names = ("nvme", "virtio-blk", "igb0", "igb1")
    with nothing_left(), ExitStack() as stack:
        nvme, blk, *igb = stack.enter_context(vfio_user.open_all([testing.device(name).address for name in names]))

        def buffers(pci: PciDevice) -> tuple[DmaBuffer, DmaBuffer]:
            first, second = (stack.enter_context(pci.dma_alloc(BUFFER)) for _ in range(2))
            return first, second

        ctrl = stack.enter_context(NvmeController(nvme))
        namespace, memory = ctrl.namespaces[0], buffers(nvme)
        blocks = PIECE // namespace.block_size
        pieces = [stack.enter_context(namespace.pieces(buffer, blocks)) for buffer in memory]
        disk = stack.enter_context(VirtioBlk(blk, timeout=PATIENCE))
        one, other = (stack.enter_context(Igb(pci, mtu=9000, timeout=PATIENCE)) for pci in igb)
        for port in (one, other):
            port.wait_link(PATIENCE)
        yield [
            NvmeCarrier(ctrl, (pieces[0], pieces[1]), memory),
            BlkCarrier(disk, buffers(blk)),
            PortCarrier((one, other)),
        ]


def account(carriers: list[Carrier], seconds: float) -> str:
    """Say who has carried how much."""
    parts = [f"{each.name} {each.carried / _GIB:.2f}" for each in carriers]
    total = sum(each.carried for each in carriers) / _GIB
    rate = f"{total:.2f} GiB in {seconds:.0f} s, {1024 * total / seconds:.0f} MiB/s"
    return f"carried and checked: {rate} ({', '.join(parts)})"


def test_traffic(carriers: list[Carrier], gib: float, capsys: pytest.CaptureFixture[str]) -> None:
    goal = gib * _GIB
    wrong: list[BaseException] = []
    begin = time.monotonic()

    def work(carrier: Carrier) -> None:
        try:
            while not wrong and sum(each.carried for each in carriers) < goal:
                carrier.step()
            carrier.finish()
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(each,), name=each.name, daemon=True) for each in carriers]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        threads[0].join(20)
        for thread in threads[1:]:
            thread.join(0.1)
        with capsys.disabled():  # who watches the guest takes silence for a hang
            print(account(carriers, time.monotonic() - begin), flush=True)
    if wrong:
        raise wrong[0]
    assert sum(each.carried for each in carriers) >= goal
    assert all(each.carried for each in carriers), "each of them took part"

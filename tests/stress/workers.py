"""Work on an edu device whose results can be checked, whatever happens to the device meanwhile."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeAlias

from tests.stress.crew import Crew
from vfio_user import PciDevice, Program
from vfio_user.device import Region
from vfio_user.drivers.edu import IRQ_ACK, Edu
from vfio_user.errors import BusyError, DeadlineError, MemoryLockBusyError, VfioError, ZappedError
from vfio_user.memory import WindowState

__all__ = ["AWAY", "ID", "ONES", "hire_for_registers", "hire_for_work"]

Work: TypeAlias = Callable[[], None]

ID = 0x010000ED
ONES = 0xFFFFFFFF
AWAY: tuple[type[Exception], ...] = (ZappedError, MemoryLockBusyError)
"""What an access may meet: the memory is away, or is about to be for long (on a machine that is overloaded)."""


def hire_for_registers(crew: Crew, pci: PciDevice, away: tuple[type[Exception], ...] = AWAY) -> None:
    """Eight workers that read and write registers, in all the ways there are."""
    bar, name = pci.bar(0), pci.name[-7:]
    for number in range(2):
        crew.hire(f"{name} guarded {number}", lambda: check(bar.read32(0), ID), away)
        crew.hire(f"{name} program {number}", programs(bar), away)
        crew.hire(f"{name} raw {number}", raw(pci), away)
    crew.hire(f"{name} write and read", liveness(bar), away)
    crew.hire(f"{name} raw write", raw_write(pci))


def check(value: object, expected: object) -> None:
    assert value == expected, f"{value!r} is not {expected!r}"


def liveness(bar: Region) -> Work:
    """Write a register that nobody else writes, and read what must come of it; then a block of registers."""
    numbers = itertools.count()

    def work() -> None:
        number = next(numbers) & ONES
        bar.write32(4, number)
        check(bar.read32(4), ~number & ONES)
        with bar.access() as mmio:
            mmio.write32(4, 5)
            check((mmio.read32(4), mmio.read32(0)), (5 ^ ONES, ID))
            check(mmio.read_block32(0, 1), ID.to_bytes(4, "little"))

    return work


def programs(bar: Region) -> Work:
    """Run a register program: all of it is one section, so its results belong together."""
    program = Program([("write32", IRQ_ACK, 0), ("read32", 0), ("poll32", 0, 0xFF, 0xED, 1000), ("read32", 0)] * 8)

    def work() -> None:
        check(bar.run(program), [ID] * 24)

    return work


def raw(pci: PciDevice) -> Work:
    """Look through a raw view: right, or all-ones, and then the window knows of it."""
    view, window = pci.bar(0).view().cast("I"), pci.vdev.window
    assert window is not None

    def work() -> None:
        generation = window.generation
        value = view[0]
        if value != ID:
            check(value, ONES)
            told = window.state != WindowState.LIVE or window.flagged or window.generation != generation
            assert told, "all-ones, and the window says that all is well"

    return work


def raw_write(pci: PciDevice) -> Work:
    """Write through a raw view a value that does nothing, while the memory is there and while it is not."""
    view = pci.bar(0).view().cast("I")

    def work() -> None:
        view[IRQ_ACK // 4] = 0

    return work


def hire_for_work(crew: Crew, edu: Edu, away: tuple[type[Exception], ...] = AWAY) -> None:
    """One worker that computes, transfers and takes interrupts by the driver."""
    numbers = itertools.count()
    buffer = edu.alloc()

    def work() -> None:
        number = next(numbers)
        try:
            check(edu.factorial(number % 30, timeout=1), math.factorial(number % 30) % (1 << 32))
            text = b"%016d" % number
            buffer[:16] = text
            buffer[64:80] = bytes(16)
            edu.copy_to_device(buffer[:16], timeout=1)
            edu.copy_from_device(buffer[64:80], timeout=1)
            check(bytes(buffer[64:80]), text)
        except VfioError:
            settle(edu)
            raise

    crew.hire("driver", work, (*away, BusyError, DeadlineError))


def settle(edu: Edu) -> None:
    """After a call that did not come to its end: let the device finish, and forget what it still tells."""
    time.sleep(0.15)  # a transfer takes a tenth of a second
    with suppress(VfioError):
        edu.regs.irq_ack.write(edu.regs.irq_status.read())
        edu.vector.drain()

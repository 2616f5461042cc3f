"""A DMA engine with an interrupt, over all modes: copies that work, copies that reach nothing, and both by turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

import vfio_user
from tests.guest.leaks import nothing_left
from vfio_user import DmaBuffer, DmaSlice
from vfio_user.addresses import Iova
from vfio_user.drivers.edu import Edu, InterruptStatus
from vfio_user.errors import DeadlineError
from vfio_user.testing import GuestDevice

Find = Callable[[str], GuestDevice]
CHUNK, SIZE = 4032, 4 * 4032


@pytest.fixture
def edu(vfio_device: Find, iommu_mode: str) -> Iterator[Edu]:
    with nothing_left(), vfio_user.open(vfio_device("edu").address, mode=iommu_mode) as pci, Edu(pci) as driver:
        yield driver


@pytest.fixture
def memory(edu: Edu) -> Iterator[DmaBuffer]:
    with edu.alloc(2 << 20) as memory:
        yield memory


def nowhere(edu: Edu, like: DmaSlice) -> DmaSlice:
    """Give a slice whose IOVA nothing is mapped at."""
    gap = edu.alloc(like.view.nbytes)
    iova = gap.iova
    gap.close()
    return DmaSlice(like.view, Iova(iova))


def copy(edu: Edu, source: DmaSlice, target: DmaSlice) -> None:
    """Copy through the device's own memory, as much as that holds at a time."""
    size = source.view.nbytes
    for at in range(0, size, CHUNK):
        part = min(CHUNK, size - at)
        edu.copy_to_device(DmaSlice(source.view[at : at + part], Iova(source.iova + at)))
        edu.copy_from_device(DmaSlice(target.view[at : at + part], Iova(target.iova + at)))


def interrupt(edu: Edu) -> int:
    """Have the device interrupt, and give how often it did."""
    edu.regs.irq_raise.write(InterruptStatus.compose(factorial=1))
    count = edu.vector.wait(30)
    edu.regs.irq_ack.write(edu.regs.irq_status.read())
    return count


def quiet(edu: Edu) -> bool:
    try:
        edu.vector.wait(0.05)
    except DeadlineError:
        return True
    return False


def test_starts_and_stops_over_and_over(edu: Edu) -> None:
    for _ in range(10):
        edu.stop()
        edu.start()
    assert edu.factorial(5) == 120


def test_copies_arrive(edu: Edu, memory: DmaBuffer) -> None:
    source, target = memory[:SIZE], memory[1 << 20 : (1 << 20) + SIZE]
    source[:], target[:] = b"x" * SIZE, b"y" * SIZE
    copy(edu, source, target)
    assert bytes(target) == b"x" * SIZE
    assert quiet(edu), "one interrupt for each transfer, and each was waited for"


def test_copies_from_and_to_nowhere_change_nothing_else(edu: Edu, memory: DmaBuffer) -> None:
    source, target = memory[:CHUNK], memory[1 << 20 : (1 << 20) + CHUNK]
    source[:] = b"x" * CHUNK
    before = bytes(memory)
    edu.copy_from_device(nowhere(edu, target))
    assert bytes(memory) == before
    edu.copy_to_device(nowhere(edu, source))
    assert bytes(memory) == before
    assert quiet(edu)


def test_interrupts_arrive_once(edu: Edu) -> None:
    for _ in range(3):
        assert interrupt(edu) == 1
    assert quiet(edu)


def test_good_and_bad_copies_and_interrupts_by_turns(edu: Edu, memory: DmaBuffer) -> None:
    source, target = memory[:SIZE], memory[1 << 20 : (1 << 20) + SIZE]
    for turn in range(3):
        source[:], target[:] = bytes([turn]) * SIZE, b"y" * SIZE
        copy(edu, source, target)
        assert bytes(target) == bytes([turn]) * SIZE
        edu.copy_to_device(nowhere(edu, memory[:CHUNK]))
        assert interrupt(edu) == 1


def test_many_copies_on_end(edu: Edu, memory: DmaBuffer) -> None:
    for at in range(0, 64 << 10, CHUNK):
        memory[at : at + CHUNK] = at.to_bytes(4, "little") * (CHUNK // 4)
        edu.copy_to_device(memory[at : at + CHUNK])
        edu.copy_from_device(memory[(1 << 20) + at : (1 << 20) + at + CHUNK])
    for at in range(0, 64 << 10, CHUNK):
        assert bytes(memory[(1 << 20) + at : (1 << 20) + at + CHUNK]) == at.to_bytes(4, "little") * (CHUNK // 4)
    assert quiet(edu)

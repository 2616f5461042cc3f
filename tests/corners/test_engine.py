"""DMA engines with an interrupt, over all modes: copies that work, copies that reach nothing, and both by turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

import vfio_user
from tests.corners.engines import Engine, running
from tests.guest.leaks import nothing_left
from vfio_user import DmaBuffer, DmaSlice
from vfio_user.addresses import Iova
from vfio_user.testing import GuestDevice

Find = Callable[[str], GuestDevice]
HALF = 2 << 20


@pytest.fixture(params=["edu", "igb"])
def engine(request: pytest.FixtureRequest, vfio_device: Find, iommu_mode: str) -> Iterator[Engine]:
    kind: str = request.param
    with (
        nothing_left(),
        vfio_user.open(vfio_device(kind).address, mode=iommu_mode) as pci,
        running(kind, pci) as engine,
    ):
        yield engine


@pytest.fixture
def memory(engine: Engine) -> Iterator[DmaBuffer]:
    with engine.alloc(2 * HALF) as memory:
        yield memory


def halves(memory: DmaBuffer, size: int) -> tuple[DmaSlice, DmaSlice]:
    return memory[:size], memory[HALF : HALF + size]


def nowhere(engine: Engine, like: DmaSlice) -> DmaSlice:
    """Give a slice whose IOVA nothing is mapped at."""
    gap = engine.alloc(like.view.nbytes)
    iova = gap.iova
    gap.close()
    return DmaSlice(like.view, Iova(iova))


def test_starts_and_stops_over_and_over(engine: Engine) -> None:
    for _ in range(10):
        engine.stop()
        engine.start()
    assert engine.interrupt() == 1


def test_copies_arrive(engine: Engine, memory: DmaBuffer) -> None:
    source, target = halves(memory, engine.SIZE)
    source[:], target[:] = b"x" * engine.SIZE, b"y" * engine.SIZE
    engine.copy(target, source)
    assert target.view == source.view
    assert engine.quiet(), "no interrupt that nobody waits for"


def test_copies_from_and_to_nowhere_change_nothing_else(engine: Engine, memory: DmaBuffer) -> None:
    source, target = halves(memory, engine.SIZE)
    source[:], target[:] = b"x" * engine.SIZE, b"y" * engine.SIZE
    engine.copy_in_vain(nowhere(engine, target), source)
    assert bytes(source) == b"x" * engine.SIZE
    assert bytes(target) == b"y" * engine.SIZE
    engine.copy_in_vain(target, nowhere(engine, source))
    assert bytes(source) == b"x" * engine.SIZE
    assert not any(memory.view[HALF + engine.SIZE :]), "what comes from nowhere goes to the target, if anywhere"
    assert engine.quiet()


def test_interrupts_arrive_once(engine: Engine) -> None:
    for _ in range(3):
        assert engine.interrupt() == 1
    assert engine.quiet()


def test_good_and_bad_copies_and_interrupts_by_turns(engine: Engine, memory: DmaBuffer) -> None:
    source, target = halves(memory, engine.SIZE)
    for turn in range(3):
        source[:], target[:] = bytes([turn]) * engine.SIZE, b"y" * engine.SIZE
        engine.copy(target, source)
        assert target.view == source.view
        engine.copy_in_vain(target, nowhere(engine, source))
        assert engine.interrupt() == 1


def test_many_copies_on_end(engine: Engine, memory: DmaBuffer) -> None:
    size, many = 4032, range(0, 64 << 10, 4032)
    source, target = halves(memory, HALF)
    for at in many:
        source[at : at + size] = at.to_bytes(4, "little") * (size // 4)
        engine.copy(target[at : at + size], source[at : at + size])
    for at in many:
        assert bytes(target[at : at + size]) == at.to_bytes(4, "little") * (size // 4)
    assert engine.quiet()

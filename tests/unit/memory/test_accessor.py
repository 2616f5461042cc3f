"""Register accessors: widths, byte order, bounds, holes, wrong types."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfio_user.errors import AlignmentError, ArgumentError, BoundsError, ClosedError
from vfio_user.memory import Mmio, Window

from .conftest import PAGE, Bar
from .watchpoint import Watchpoint, watchpoints_work

WIDTHS = [8, 16, 32, 64]


def reader(mmio: Mmio, bits: int) -> Callable[[int], int]:
    method: Callable[[int], int] = getattr(mmio, f"read{bits}")
    return method


def writer(mmio: Mmio, bits: int) -> Callable[[int, int], None]:
    method: Callable[[int, int], None] = getattr(mmio, f"write{bits}")
    return method


@pytest.mark.parametrize("bits", WIDTHS)
def test_reads_little_endian(bar: Bar, bits: int) -> None:
    data = os.urandom(256)
    bar.fill(data, 128)
    for offset in range(128, 384, bits // 8):
        assert reader(bar.mmio, bits)(offset) == int.from_bytes(bar.content(offset, bits // 8), "little")


@pytest.mark.parametrize("bits", WIDTHS)
def test_writes_little_endian_and_nothing_else(bar: Bar, bits: int) -> None:
    size = bits // 8
    for value in (0, 1, 0xA5, (1 << bits) - 1, 0x0123456789ABCDEF & ((1 << bits) - 1)):
        bar.fill(b"\x5a" * 64, 0)
        writer(bar.mmio, bits)(16, value)
        assert bar.content(0, 64) == b"\x5a" * 16 + value.to_bytes(size, "little") + b"\x5a" * (48 - size)


@pytest.mark.parametrize("bits", WIDTHS)
def test_exactly_one_access_of_exactly_that_width(bar: Bar, bits: int) -> None:
    size, offset = bits // 8, 64
    writer(bar.mmio, bits)(bar.size - size, 1)  # nothing beyond the last byte is touched: it would be a SIGBUS
    assert reader(bar.mmio, bits)(bar.size - size) == 1
    if not watchpoints_work():
        return  # the kernel forbids them here (seccomp): the line above is what can be shown
    with (
        Watchpoint(bar.mmio.address + offset - 8, 8) as below,
        Watchpoint(bar.mmio.address + offset, size) as register,
        Watchpoint(bar.mmio.address + offset + size - 1, 1) as last_byte,
        Watchpoint(bar.mmio.address + offset + size, 1) as above,
    ):
        reader(bar.mmio, bits)(offset)
        assert [each.hits() for each in (below, register, last_byte, above)] == [0, 1, 1, 0]
        writer(bar.mmio, bits)(offset, 0)
        assert [each.hits() for each in (below, register, last_byte, above)] == [0, 2, 2, 0]


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("inside", [False, True])
def test_bounds(bar: Bar, bits: int, inside: bool) -> None:
    size = bits // 8
    offsets = [bar.size, bar.size + size, -size, -1, 2**63, 2**64 - 1, 2**64 - size, 2**64, 10**30]
    for offset in [0, bar.size - size] if inside else offsets:
        if inside:
            reader(bar.mmio, bits)(offset)
            writer(bar.mmio, bits)(offset, 0)
            continue
        with pytest.raises(BoundsError):
            reader(bar.mmio, bits)(offset)
        with pytest.raises(BoundsError):
            writer(bar.mmio, bits)(offset, 0)


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_alignment(bar: Bar, bits: int) -> None:
    for offset in range(1, bits // 8):
        with pytest.raises(AlignmentError, match=f"multiple of the access width, {bits // 8} bytes"):
            reader(bar.mmio, bits)(offset)
        with pytest.raises(AlignmentError):
            writer(bar.mmio, bits)(offset, 0)


@pytest.mark.parametrize("bits", WIDTHS)
def test_values_that_do_not_fit(bar: Bar, bits: int) -> None:
    for value in (1 << bits, -1, 1 << 64, -(1 << 70)):
        with pytest.raises(ArgumentError, match="value must be from 0 to"):
            writer(bar.mmio, bits)(0, value)
    assert bar.content(0, 8) == bytes(8)


@pytest.mark.parametrize("wrong", [1.0, "0", None, b"\0", [0], 1j])
def test_wrong_types(bar: Bar, wrong: object) -> None:
    with pytest.raises(TypeError, match="offset must be an integer"):
        bar.mmio.read32(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="offset must be an integer"):
        bar.mmio.write32(wrong, 0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="value must be an integer"):
        bar.mmio.write32(0, wrong)  # type: ignore[arg-type]


def test_wrong_number_of_arguments(bar: Bar) -> None:
    with pytest.raises(TypeError):
        bar.mmio.read32()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="takes an offset and a value"):
        bar.mmio.write32(0)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="takes an offset and a value"):
        bar.mmio.write32(0, 1, 2)  # type: ignore[call-arg]


def test_integers_of_other_types(bar: Bar) -> None:
    bar.mmio.write32(numpy.int64(8), numpy.uint32(7))  # type: ignore[arg-type]
    assert bar.mmio.read32(numpy.uint8(8)) == 7  # type: ignore[arg-type]
    bar.mmio.write64(0, numpy.uint64(2**64 - 1))  # type: ignore[arg-type]
    assert bar.mmio.read64(False) == 2**64 - 1


def test_a_region_that_is_read_only(make_bar: Callable[..., Bar]) -> None:
    bar = make_bar(writable=False)
    bar.fill(b"\x01")
    assert bar.mmio.read8(0) == 1
    assert not bar.mmio.writable
    for attempt in (lambda: bar.mmio.write8(0, 2), lambda: bar.mmio.write_block(0, bytes(4))):
        with pytest.raises(ArgumentError, match="read-only"):
            attempt()
    assert memoryview(bar.mmio).readonly
    with pytest.raises(BufferError):
        bar.mmio.readinto(0, memoryview(bar.mmio))


def test_closed(bar: Bar) -> None:
    bar.close()
    with pytest.raises(ClosedError, match=r"0000:01:00\.0 is closed"):
        bar.mmio.read32(0)
    with pytest.raises(ClosedError):
        bar.mmio.write32(0, 0)
    with pytest.raises(ClosedError):
        bar.mmio.readinto(0, bytearray(4))
    with pytest.raises(ClosedError):
        bar.mmio.poll(0, 4, 0, 0, 0)
    with pytest.raises(ClosedError):
        memoryview(bar.mmio)
    with pytest.raises(ClosedError):
        bar.mmio.view(0, 4)


# -- holes


@pytest.fixture
def holed(bar: Bar) -> Iterator[Mmio]:
    """A region of 8 pages with the third one, and all from the sixth on, not mapped."""
    window = Window(8 * PAGE, name="holed")
    areas = [(0, 2 * PAGE), (3 * PAGE, PAGE), (4 * PAGE, PAGE)]
    for offset, length in areas:
        window.map(offset, length, bar.fd, offset)
    yield Mmio(window, 0, 8 * PAGE, areas)
    window.close()


def test_areas_that_abut_are_one(holed: Mmio) -> None:
    assert holed.areas == ((0, 2 * PAGE), (3 * PAGE, 2 * PAGE))
    holed.write64(4 * PAGE - 8, 1)
    holed.readinto(4 * PAGE - 8, bytearray(16), 8)


@pytest.mark.parametrize("page", [2, 5, 6, 7])
def test_a_hole_is_refused(holed: Mmio, page: int) -> None:
    for offset in (page * PAGE, page * PAGE + 64, (page + 1) * PAGE - 8):
        with pytest.raises(BoundsError, match="use pread and pwrite"):
            holed.read32(offset)
        with pytest.raises(BoundsError, match="use pread and pwrite"):
            holed.write64(offset, 0)


def test_a_block_does_not_run_into_a_hole(holed: Mmio) -> None:
    with pytest.raises(BoundsError):
        holed.readinto(2 * PAGE - 4, bytearray(8), 4)
    with pytest.raises(BoundsError):
        holed.view(2 * PAGE - 4, 8)
    holed.view(2 * PAGE - 4, 4).release()


def test_a_region_with_holes_has_no_whole_view(holed: Mmio) -> None:
    with pytest.raises(BufferError, match=r"view\(offset, size\)"):
        memoryview(holed)


# -- construction


def test_an_accessor_covers_only_what_is_mapped(bar: Bar) -> None:
    """Nothing that an accessor lets through can be a wild access."""
    for areas in ([(0, bar.size + PAGE)], [(bar.size, PAGE)], [(-PAGE, PAGE)]):
        with pytest.raises(ArgumentError):
            Mmio(bar.window, 0, 1 << 20, areas)
    with pytest.raises(BoundsError):
        Mmio(bar.window, 0, bar.window.size + 1, [])
    with pytest.raises(BoundsError):
        Mmio(bar.window, bar.window.size + PAGE, 0, [])


@pytest.mark.parametrize(
    "areas",
    [
        [(0, 0)],
        [(PAGE, PAGE), (0, PAGE)],
        [(0, 2 * PAGE), (PAGE, PAGE)],
        [(0, 1 << 40)],
        [(1 << 40, PAGE)],
    ],
)
def test_areas_that_make_no_sense(bar: Bar, areas: list[tuple[int, int]]) -> None:
    with pytest.raises(ArgumentError):
        Mmio(bar.window, 0, bar.size, areas)


@pytest.mark.parametrize("areas", [None, 5, [5], [(1,)], [(1, 2, 3)], [("a", 1)], [[0, PAGE]]])
def test_areas_of_the_wrong_type(bar: Bar, areas: object) -> None:
    with pytest.raises(TypeError):
        Mmio(bar.window, 0, bar.size, areas)  # type: ignore[arg-type]


def test_a_region_that_is_mapped_read_only_can_not_be_writable(make_bar: Callable[..., Bar]) -> None:
    bar = make_bar(writable=False)
    with pytest.raises(ArgumentError, match="not for writing"):
        Mmio(bar.window, 0, bar.size, [(0, bar.size)], writable=True)


def test_properties(bar: Bar) -> None:
    assert bar.mmio.size == bar.size
    assert bar.mmio.address == bar.window.address
    assert bar.mmio.window is bar.window
    assert bar.mmio.areas == ((0, bar.size),)
    assert repr(bar.mmio) == f"<Mmio of 0000:01:00.0, 65536 bytes at {bar.window.address:#x}>"


@pytest.fixture(scope="module")
def shared() -> Iterator[Bar]:
    bar = Bar()
    yield bar
    bar.close()


@settings(max_examples=2 * settings().max_examples)
@given(offset=st.integers(-(2**70), 2**70), value=st.integers(-(2**70), 2**70), bits=st.sampled_from(WIDTHS))
def test_an_access_is_right_or_refused(shared: Bar, offset: int, value: int, bits: int) -> None:
    size = bits // 8
    good = 0 <= offset <= shared.size - size and offset % size == 0
    if good and 0 <= value < 1 << bits:
        writer(shared.mmio, bits)(offset, value)
        assert reader(shared.mmio, bits)(offset) == value
        return
    with pytest.raises(ArgumentError):
        writer(shared.mmio, bits)(offset, value)


@settings(max_examples=2 * settings().max_examples)
@given(data=st.data(), bits=st.sampled_from(WIDTHS))
def test_what_was_written_is_read_by_every_width(shared: Bar, data: st.DataObject, bits: int) -> None:
    value = data.draw(st.integers(0, 2**bits - 1))
    offset = data.draw(st.integers(0, (shared.size - 8) // 8)) * 8
    writer(shared.mmio, bits)(offset, value)
    assert shared.mmio.read64(offset).to_bytes(8, "little")[: bits // 8] == value.to_bytes(bits // 8, "little")
    assert [shared.mmio.read8(offset + i) for i in range(bits // 8)] == list(value.to_bytes(bits // 8, "little"))

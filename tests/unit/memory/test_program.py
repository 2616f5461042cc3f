"""Register programs."""

from __future__ import annotations

import array
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfio_user.errors import AlignmentError, ArgumentError, BoundsError, DeadlineError, ZappedError
from vfio_user.memory import Mmio, Program, Window

from .conftest import PAGE, Bar, Thread


def test_steps_in_order(bar: Bar) -> None:
    program = Program(
        [
            ("write32", 0, 0x11223344),
            ("read32", 0),
            ("write8", 1, 0xAA),
            ("read16", 0),
            ("read64", 0),
            ("write64", 8, 2**64 - 1),
            ("poll32", 8, 0xF0, 0xF0, 1000),
            ("write16", 8, 0),
            ("read64", 8),
            ("read8", 9),
        ]
    )
    assert (len(program), program.num_results) == (10, 6)
    assert repr(program) == "<Program of 10 steps, 6 results>"
    assert bar.mmio.run(program) == [0x11223344, 0xAA44, 0x1122AA44, 0xFFFFFFFF, 0xFFFFFFFFFFFF0000, 0]
    assert bar.mmio.run(program)[0] == 0x11223344, "a program runs as often as wanted"


def test_an_empty_program(bar: Bar) -> None:
    assert bar.mmio.run(Program([])) == []


def test_a_long_program(bar: Bar) -> None:
    program = Program([("write32", 4 * i, i * i) for i in range(4096)] + [("read32", 4 * i) for i in range(4096)])
    assert bar.mmio.run(program) == [i * i for i in range(4096)]


def test_runs_up_down_and_on_the_spot(bar: Bar) -> None:
    down = Program([("write16", 198 - 2 * i, i) for i in range(100)] + [("read16", 4 * i) for i in range(50)])
    assert bar.mmio.run(down) == [99 - 2 * i for i in range(50)]
    fifo = Program([("write32", 0, value) for value in (1, 2, 3)] + [("read32", 0)] * 3)
    assert bar.mmio.run(fifo) == [3, 3, 3]


def test_run_into(bar: Bar) -> None:
    program = Program([("write32", 0, 7), ("read32", 0), ("read8", 0)])
    results = array.array("Q", [0, 0, 99])
    assert bar.mmio.run_into(program, results) == 2
    assert results.tolist() == [7, 7, 99]
    with pytest.raises(ArgumentError, match="needs 16 bytes"):
        bar.mmio.run_into(program, bytearray(15))
    with pytest.raises(ArgumentError, match="8-aligned"):
        bar.mmio.run_into(program, memoryview(array.array("Q", [0] * 4)).cast("B")[4:28])
    with pytest.raises(BufferError):
        bar.mmio.run_into(program, bytes(16))
    with pytest.raises(TypeError):
        bar.mmio.run_into(program)  # type: ignore[call-arg]


@pytest.mark.parametrize("wrong", [None, [("read32", 0)], 5])
def test_what_is_no_program(bar: Bar, wrong: Any) -> None:
    with pytest.raises(TypeError, match="make one with Program"):
        bar.mmio.run(wrong)


@pytest.mark.parametrize(
    "step",
    [
        ("read32",),
        ("read32", 0, 0),
        ("read24", 0),
        ("write32", 0),
        ("poll32", 0, 1, 1),
        ["read32", 0],
        (32, 0),
        "read32",
        5,
        ("write8", 0, 256),
        ("write32", 0, -1),
        ("poll8", 0, 0x100, 0, 1),
        ("poll32", 0, 1, 2, 1),
        ("poll32", 0, 1, 1, 1000001),
        ("read32", -4),
        ("read32", 2**64),
    ],
)
def test_steps_that_make_no_sense(step: Any) -> None:
    with pytest.raises(ArgumentError):
        Program([("read32", 0), step])


@pytest.mark.parametrize("step", [("read32", 1.0), ("write32", 0, "1"), ("poll32", 0, 1, 1, 0.5), ("read32", None)])
def test_operands_of_the_wrong_type(step: Any) -> None:
    with pytest.raises(TypeError, match="must be an integer"):
        Program([step])


def test_the_error_names_the_step() -> None:
    with pytest.raises(ArgumentError, match="step 2 is not"):
        Program([("read32", 0), ("read32", 4), ("jump", 0)])
    with pytest.raises(AlignmentError, match="step 1: offset 6"):
        Program([("read32", 0), ("read32", 6)])


def test_polls_of_a_program_are_limited_together() -> None:
    Program([("poll32", 0, 0, 0, 500_000)] * 2)
    with pytest.raises(ArgumentError, match="1000000 us together"):
        Program([("poll32", 0, 0, 0, 500_000)] * 2 + [("poll32", 0, 0, 0, 1)])


@pytest.mark.parametrize("where", ["first", "last", "in a run"])
def test_a_program_that_leaves_the_region_does_nothing(bar: Bar, where: str) -> None:
    outside = ("write32", bar.size, 1)
    good = [("write32", 4 * i, 1) for i in range(5)]
    steps = {"first": [outside, *good], "last": [*good, outside]}.get(where)
    if steps is None:
        steps = [("write32", bar.size - 16 + 4 * i, 1) for i in range(8)]
    with pytest.raises(BoundsError):
        bar.mmio.run(Program(steps))
    assert bar.content(0, bar.size) == bytes(bar.size)


def test_a_program_does_not_touch_holes(bar: Bar) -> None:
    window = Window(4 * PAGE)
    for place in (0, 2 * PAGE):
        window.map(place, PAGE, bar.fd, place)
    mmio = Mmio(window, 0, 4 * PAGE, [(0, PAGE), (2 * PAGE, PAGE)])
    assert mmio.run(Program([("read32", 0), ("read32", 2 * PAGE)])) == [0, 0]
    assert mmio.run(Program([("read32", 2 * PAGE * i) for i in (1, 0)])) == [0, 0]
    for steps in ([("read32", PAGE * i) for i in range(3)], [("read32", PAGE * i) for i in (2, 1, 0)]):
        with pytest.raises(BoundsError):
            mmio.run(Program(steps))
    window.close()


def test_a_program_that_writes_wants_a_writable_region(make_bar: Callable[..., Bar]) -> None:
    bar = make_bar(writable=False)
    assert bar.mmio.run(Program([("read32", 0)])) == [0]
    with pytest.raises(ArgumentError, match="read-only"):
        bar.mmio.run(Program([("read32", 0), ("write32", 0, 1)]))


def test_a_poll_that_expires(bar: Bar) -> None:
    program = Program([("read32", 4), ("poll32", 0, 1, 1, 20_000), ("write32", 8, 1)])
    start = time.monotonic()
    with pytest.raises(DeadlineError, match="poll of step 1 expired; the last value is 0x0") as caught:
        bar.mmio.run(program)
    assert 0.02 <= time.monotonic() - start < 1
    assert (caught.value.step, caught.value.results) == (1, [0])
    assert bar.mmio.read32(8) == 0, "the steps after it were not done"


def test_a_poll_that_comes_true(bar: Bar, spawn: Callable[..., Thread]) -> None:
    program = Program([("poll32", 0, 1, 1, 1_000_000), ("write32", 8, 1)])
    runner = spawn(lambda: bar.mmio.run(program))
    time.sleep(0.02)
    bar.mmio.write32(0, 3)
    assert runner.finish() == [3]
    assert bar.mmio.read32(8) == 1


def test_a_program_is_one_read_section(bar: Bar, spawn: Callable[..., Thread]) -> None:
    """A writer comes before or after it, never between its steps."""
    program = Program([("read32", 0), ("poll32", 4, 1, 1, 30_000), ("read32", 0)])
    done = threading.Event()

    def run() -> None:
        with pytest.raises(DeadlineError):
            bar.mmio.run(program)
        done.set()

    runner = spawn(run)
    time.sleep(0.01)
    bar.window.lock_write(5)
    time.sleep(0.002)
    assert bar.window.holders()[1:] == []
    bar.window.unlock_write()
    runner.finish()


def test_zapped(bar: Bar) -> None:
    bar.window.zap()
    with pytest.raises(ZappedError):
        bar.mmio.run(Program([("read32", 0)]))


@pytest.fixture(scope="module")
def shared() -> Iterator[Bar]:
    bar = Bar()
    yield bar
    bar.close()


SIZE = 256


@st.composite
def steps(draw: st.DrawFn) -> list[Any]:
    bits = draw(st.sampled_from([8, 16, 32, 64]))
    offset = draw(st.integers(0, SIZE // (bits // 8) - 1)) * (bits // 8)
    count = draw(st.integers(1, 6))
    stride = draw(st.integers(-3, 3)) * (bits // 8)
    offsets = [offset + stride * i for i in range(count) if 0 <= offset + stride * i <= SIZE - bits // 8]
    kind = draw(st.sampled_from(["read", "write", "poll"]))
    if kind == "read":
        return [(f"read{bits}", each) for each in offsets]
    if kind == "write":
        return [(f"write{bits}", each, draw(st.integers(0, 2**bits - 1))) for each in offsets]
    return [(f"poll{bits}", each, 0, 0, 0) for each in offsets]


@settings(max_examples=2 * settings().max_examples)
@given(st.lists(steps(), max_size=12))
def test_packing_changes_nothing(shared: Bar, groups: list[list[Any]]) -> None:
    """A program does what its steps do one by one on a bytearray, however they were packed into runs."""
    program = [step for group in groups for step in group]
    model = bytearray(shared.content(0, SIZE))
    expected = []
    for name, offset, *operands in program:
        size = int(name.lstrip("readwitpol")) // 8
        if name.startswith("write"):
            model[offset : offset + size] = operands[0].to_bytes(size, "little")
        else:
            expected.append(int.from_bytes(model[offset : offset + size], "little"))
    assert shared.mmio.run(Program(program)) == expected
    assert shared.content(0, SIZE) == model

"""Windows: map, zap, revive, close; views that live on; nothing left behind."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from vfio_user import _mmio
from vfio_user.errors import (
    AlignmentError,
    ArgumentError,
    BoundsError,
    ClosedError,
    DeadlineError,
    DeviceGoneError,
    LockOrderError,
    MemoryDisabledError,
    MemoryLockBusyError,
    VfioOSError,
    ZappedError,
)
from vfio_user.memory import Mmio, Window, WindowFlag, WindowState, ZapReason, zap_many

from .conftest import MIB, PAGE, Bar, Thread, array_over


def flags_of(address: int) -> set[str]:
    """VmFlags of the mapping that holds an address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, rest = line.partition(" ")
        if "-" in name and not name.endswith(":"):
            low, high = (int(part, 16) for part in name.split("-"))
            inside = low <= address < high
        elif inside and name == "VmFlags:":
            return set(rest.split())
    raise AssertionError("not mapped")


def mapping_of(address: int) -> str:
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(part, 16) for part in line.split()[0].split("-"))
        if low <= address < high:
            return line
    raise AssertionError("not mapped")


# -- reserving and mapping


@pytest.mark.parametrize("align", [2 * MIB, 4 * MIB, 1 << 30])
def test_address_is_aligned_and_size_rounded(align: int) -> None:
    window = Window(5 * MIB, align)
    assert window.address % align == 0
    assert window.size == 6 * MIB
    window.close()


def test_a_window_of_terabytes_costs_nothing() -> None:
    window = Window(1 << 40, 1 << 30)
    window.zap()
    window.close()


def test_windows_are_neighbours_where_that_is_possible() -> None:
    windows = [Window(2 * MIB) for _ in range(4)]
    windows.sort(key=lambda window: window.address)
    gaps = [right.address - left.address - left.size for left, right in pairwise(windows)]
    assert gaps == [0, 0, 0]
    for window in windows:
        window.close()


@pytest.mark.parametrize(
    ("size", "align"), [(0, 2 * MIB), (PAGE, PAGE), (PAGE, 3 * MIB), (-1, 2 * MIB), (1 << 50, 2 * MIB)]
)
def test_windows_that_make_no_sense(size: int, align: int) -> None:
    with pytest.raises(ArgumentError):
        Window(size, align)


@pytest.mark.parametrize("wrong", [1.5, "1", None])
def test_wrong_types(wrong: object) -> None:
    with pytest.raises(TypeError):
        Window(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Window(PAGE, name=5)  # type: ignore[arg-type]


def test_no_addresses_left_says_which_limit(script: Callable[..., object]) -> None:
    done = script(
        """
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
        try:
            _mmio.Window(64 << 30)
        except VfioOSError as error:
            print(error.errno, error)
        """
    )
    assert "12 reserve addresses" in done.stdout  # type: ignore[attr-defined]
    assert "RLIMIT_AS" in done.stdout  # type: ignore[attr-defined]
    assert resource.RLIMIT_AS


@pytest.mark.parametrize(
    ("place", "length", "offset", "prot", "error"),
    [
        (1, PAGE, 0, 3, AlignmentError),
        (0, PAGE + 1, 0, 3, AlignmentError),
        (0, PAGE, 512, 3, AlignmentError),
        (0, 0, 0, 3, ArgumentError),
        (0, PAGE, 0, 0, ArgumentError),
        (0, PAGE, 0, 7, ArgumentError),
        (2 * MIB, PAGE, 0, 3, BoundsError),
        (2 * MIB - PAGE, 2 * PAGE, 0, 3, BoundsError),
        (-PAGE, PAGE, 0, 3, ArgumentError),
        (0, PAGE, -PAGE, 3, ArgumentError),
    ],
)
def test_areas_that_make_no_sense(
    bar: Bar, place: int, length: int, offset: int, prot: int, error: type[Exception]
) -> None:
    window = Window(2 * MIB)
    with pytest.raises(error):
        window.map(place, length, bar.fd, offset, prot)
    window.close()


def test_areas_do_not_overlap(bar: Bar) -> None:
    for place in (0, bar.size - PAGE):
        with pytest.raises(ArgumentError, match="overlaps"):
            bar.window.map(place, 2 * PAGE, bar.fd, 0)
    bar.window.map(bar.size, PAGE, bar.fd, 0)


def test_a_file_that_can_not_be_mapped(bar: Bar) -> None:
    read_only = os.open(f"/proc/self/fd/{bar.fd}", os.O_RDONLY)
    with pytest.raises(VfioOSError, match="map a region") as caught:
        bar.window.map(MIB, PAGE, read_only, 0)
    assert caught.value.errno == 13
    os.close(read_only)
    with pytest.raises(VfioOSError) as caught:
        bar.window.map(MIB, PAGE, 9999, 0)
    assert caught.value.errno == 9
    bar.window.map(MIB, PAGE, bar.fd, 0)  # the failures left nothing in the way


def test_nothing_is_mapped_while_zapped(bar: Bar) -> None:
    bar.window.zap()
    with pytest.raises(ZappedError):
        bar.window.map(MIB, PAGE, bar.fd, 0)


def test_kept_out_of_children_and_dumps(bar: Bar) -> None:
    """Every MAP_FIXED drops the flags, so they are looked at after each."""
    address = bar.window.address
    for _ in range(2):
        assert {"dc", "dd"} <= flags_of(address)
        bar.window.zap()
        assert {"dc", "dd"} <= flags_of(address)
        bar.window.revive(bar.fd)
    assert {"dc", "dd"} <= flags_of(address)
    assert {"dc", "dd"} <= flags_of(address + MIB)


# -- zap and revive


def test_zap_and_revive_keep_the_address(bar: Bar) -> None:
    view = memoryview(bar.mmio).cast("I")
    array = array_over(bar.mmio, "<u4")
    address, where = bar.window.address, array.ctypes.data
    for generation in range(5):
        bar.mmio.write32(0, generation)
        assert (view[0], array[0], bar.mmio.read32(0)) == (generation, generation, generation)
        bar.window.zap(ZapReason.RESET)
        assert bar.window.state == WindowState.ZAPPED
        assert bar.window.flag == WindowFlag.NONE
        assert view[0] == 0xFFFFFFFF
        assert (array == 0xFFFFFFFF).all()
        assert (bar.window.flagged, bar.window.flag) == (True, WindowFlag.TOUCHED)
        bar.window.revive(bar.fd)
        assert bar.window.state == WindowState.LIVE
        assert bar.window.flag == WindowFlag.NONE
        assert bar.window.generation == generation + 1
        assert (bar.window.address, array.ctypes.data) == (address, where)
        assert view[0] == generation


def test_writes_to_zapped_memory_never_reach_the_device(bar: Bar) -> None:
    bar.fill(bytes(range(64)))
    view = memoryview(bar.mmio)
    bar.window.zap()
    view[0:64] = bytes(64)
    array_over(bar.mmio, "u1")[:] = 0x55
    assert view[0] == 0x55  # a private copy of the page: a limit, and said so in the documentation
    bar.window.zap()
    assert view[0] == 0xFF
    assert bar.content(0, 64) == bytes(range(64))
    bar.window.revive(bar.fd)
    assert bytes(view[:64]) == bytes(range(64))


@pytest.mark.parametrize(
    ("reason", "error"),
    [
        (ZapReason.NONE, ZappedError),
        (ZapReason.RESET, ZappedError),
        (ZapReason.CLOSE, ZappedError),
        (ZapReason.DISABLED, MemoryDisabledError),
        (ZapReason.GONE, DeviceGoneError),
        (12345, ZappedError),
    ],
)
def test_accessors_raise_by_the_reason(bar: Bar, reason: int, error: type[ZappedError]) -> None:
    bar.window.zap(reason)
    assert bar.window.reason == reason
    accesses: list[Callable[[], object]] = [
        lambda: bar.mmio.read8(0),
        lambda: bar.mmio.read64(8),
        lambda: bar.mmio.write32(0, 1),
        lambda: bar.mmio.readinto(0, bytearray(8)),
        lambda: bar.mmio.write_block(0, bytes(8)),
        lambda: bar.mmio.read_block32(0, 1),
        lambda: bar.mmio.poll(0, 4, 0, 0, 1.0),
        lambda: bar.mmio.run(_mmio.Program([("read32", 0)])),
        lambda: bar.mmio.access().__enter__(),
    ]
    for access in accesses:
        with pytest.raises(ZappedError, match=r"0000:01:00\.0") as caught:
            access()
        assert type(caught.value) is error
        assert caught.value.reason == reason
    assert not bar.window.flagged, "a guarded access touches nothing"
    bar.window.revive(bar.fd)
    assert bar.mmio.read8(0) == 0


@pytest.mark.parametrize("wrong", [-1, 1 << 31])
def test_reasons_that_are_none(bar: Bar, wrong: int) -> None:
    with pytest.raises(ArgumentError, match="reason"):
        bar.window.zap(wrong)
    assert bar.window.state == WindowState.LIVE


def test_revive_of_what_was_not_zapped(bar: Bar) -> None:
    bar.mmio.write32(0, 7)
    bar.window.revive(bar.fd)
    assert bar.mmio.read32(0) == 7


def test_revive_from_another_file(bar: Bar, make_bar: Callable[..., Bar]) -> None:
    other = make_bar()
    other.fill(b"\x77")
    bar.window.zap()
    bar.window.revive(other.fd)
    assert bar.mmio.read8(0) == 0x77


def test_revive_that_fails_leaves_everything_zapped(bar: Bar) -> None:
    second = MIB
    bar.window.map(second, PAGE, bar.fd, 0)
    view = memoryview(bar.mmio)
    read_only = os.open(f"/proc/self/fd/{bar.fd}", os.O_RDONLY)
    for zapped_before in (True, False):
        if zapped_before:
            bar.window.zap(ZapReason.RESET)
        with pytest.raises(VfioOSError, match="revive") as caught:
            bar.window.revive(read_only)
        assert caught.value.errno == 13
        assert bar.window.state == WindowState.ZAPPED
        with pytest.raises(ZappedError):
            bar.mmio.read32(0)
        assert view[0] == 0xFF
        bar.window.revive(bar.fd)
        assert bar.mmio.read32(0) == 0
    os.close(read_only)


def test_one_window_holds_all_regions(bar: Bar) -> None:
    """Six BARs and sparse areas are zapped as one mapping."""
    window = Window(16 * MIB)
    areas = [(place * 2 * MIB + hole * 4 * PAGE, 2 * PAGE) for place in range(6) for hole in range(3)]
    for place, length in areas:
        window.map(place, length, bar.fd, 0)
    accessors = [Mmio(window, place, length, [(0, length)]) for place, length in areas]
    views = [memoryview(mmio) for mmio in accessors]
    assert all(view[0] == 0 for view in views)
    window.zap()
    line = mapping_of(window.address)
    low, high = (int(part, 16) for part in line.split()[0].split("-"))
    assert low <= window.address
    assert high >= window.address + window.size
    assert line.split()[1] == "---p"
    assert all(view[0] == 0xFF for view in views)
    window.revive(bar.fd)
    assert all(view[0] == 0 for view in views)
    for place, length in areas:
        assert "memfd:bar" in mapping_of(window.address + place)
        assert mapping_of(window.address + place + length).split()[1] == "---p", "ones stay in no hole"
    del views
    window.close()


def test_zap_many_merges_neighbours(bar: Bar) -> None:
    windows = [Window(2 * MIB, name=f"dev{index}") for index in range(4)]
    views = []
    for window in windows:
        window.map(0, PAGE, bar.fd, 0)
        views.append(memoryview(Mmio(window, 0, PAGE, [(0, PAGE)])))
        assert window.try_lock_write()
    zap_many(windows, ZapReason.RESET)
    line = mapping_of(windows[0].address)
    low, high = (int(part, 16) for part in line.split()[0].split("-"))
    assert all(low <= window.address < high for window in windows)
    assert {window.reason for window in windows} == {ZapReason.RESET}
    assert all(view[0] == 0xFF for view in views)
    for window in windows:
        window.revive(bar.fd)
        window.unlock_write()
    assert all(view[0] == 0 for view in views)
    views.clear()
    for window in windows:
        window.close()


def test_zap_many_wants_locks_and_no_window_twice(bar: Bar, make_bar: Callable[..., Bar]) -> None:
    other = make_bar(name="0000:02:00.0")
    with pytest.raises(LockOrderError, match=r"0000:01:00\.0"):
        zap_many([bar.window])
    bar.window.lock_write(1.0)
    with pytest.raises(LockOrderError, match=r"0000:02:00\.0"):
        zap_many([bar.window, other.window])
    with pytest.raises(ArgumentError, match="twice"):
        zap_many([bar.window, bar.window])
    with pytest.raises(TypeError):
        zap_many([bar.window, 5])  # type: ignore[list-item]
    with pytest.raises(TypeError):
        zap_many(5)  # type: ignore[arg-type]
    assert bar.window.state == WindowState.LIVE
    zap_many([])
    bar.window.unlock_write()


# -- waiting for memory


def test_wait_live_and_access_wait(bar: Bar, spawn: Callable[..., Thread]) -> None:
    bar.window.zap()
    with pytest.raises(DeadlineError, match="did not come back in time"):
        bar.window.wait_live(0.02)
    with pytest.raises(DeadlineError):
        bar.window.acquire_read(wait=0.02)
    waiters = [spawn(lambda: bar.window.wait_live(10)), spawn(lambda: _access(bar, 10))]
    bar.window.wait_live  # noqa: B018
    bar.window.revive(bar.fd)
    for waiter in waiters:
        waiter.finish()
    bar.window.wait_live(0)


def _access(bar: Bar, wait: float) -> int:
    with bar.mmio.access(wait=wait) as mmio:
        return mmio.read32(0)


def test_who_waits_is_told_of_a_close(bar: Bar, spawn: Callable[..., Thread]) -> None:
    bar.window.zap()
    waiter = spawn(lambda: bar.window.wait_live(10))
    bar.window.close()
    with pytest.raises(ClosedError):
        waiter.finish()


def test_waiting_inside_of_a_section_is_refused(bar: Bar) -> None:
    with bar.mmio.access(), pytest.raises(LockOrderError):
        bar.window.wait_live(1)


# -- close


def test_close_gives_everything_back(leaks: None) -> None:
    for _ in range(3):
        bar = Bar()
        bar.window.zap()
        bar.window.revive(bar.fd)
        bar.close()
        assert bar.window.closed
        assert bar.window.state == WindowState.CLOSED
        assert (bar.window.address, bar.window.size) == (0, 0)
        bar.window.close()


def test_a_live_view_outlives_close(leaks: None) -> None:
    bar = Bar()
    bar.fill(b"\x01" * 64)
    view, array = memoryview(bar.mmio), array_over(bar.mmio, "u1")
    part = bar.mmio.view(PAGE, 16)
    assert bar.window.exports == 3
    address = bar.window.address
    bar.close()
    assert "memfd:bar" not in Path("/proc/self/maps").read_text(), "the device's file is released at once"
    assert bar.window.address == address
    assert view[0] == 0xFF
    assert (array == 0xFF).all()
    assert bytes(part) == b"\xff" * 16
    del view, array
    assert part[0] == 0xFF
    assert bar.window.address == address
    part.release()
    assert bar.window.address == 0


def test_closing_while_zapped_and_touched(leaks: None) -> None:
    bar = Bar()
    view = memoryview(bar.mmio)
    bar.window.zap()
    assert view[0] == 0xFF
    bar.close()
    assert view[1] == 0xFF
    view.release()


def test_close_waits_for_readers(bar: Bar, spawn: Callable[..., Thread]) -> None:
    bar.window.acquire_read()
    closer = spawn(lambda: bar.window.close(0.05))
    with pytest.raises(MemoryLockBusyError, match="is in a read section"):
        closer.finish()
    assert bar.mmio.read32(0) == 0, "still open"
    with pytest.raises(LockOrderError):
        bar.window.close()
    bar.window.release_read()
    bar.window.close()


def test_an_unclosed_window_warns() -> None:
    window = Window(PAGE, name="forgotten")
    with pytest.warns(ResourceWarning, match="unclosed window of forgotten"):
        del window


@pytest.mark.parametrize(
    "use",
    [
        lambda window, fd: window.map(0, PAGE, fd, 0),
        lambda window, fd: window.zap(),
        lambda window, fd: window.revive(fd),
        lambda window, fd: window.lock_write(1.0),
        lambda window, fd: window.try_lock_write(),
        lambda window, fd: window.acquire_read(),
        lambda window, fd: window.acquire_read(1.0),
        lambda window, fd: window.wait_live(1.0),
        lambda window, fd: Mmio(window, 0, PAGE, []),
    ],
)
def test_a_closed_window_refuses(bar: Bar, use: Callable[[Window, int], object]) -> None:
    bar.window.close()
    with pytest.raises(ClosedError, match="is closed"):
        use(bar.window, bar.fd)


@pytest.mark.parametrize("wrong", [-1, float("nan"), float("inf"), 1e12])
def test_timeouts_that_are_none(bar: Bar, wrong: float) -> None:
    for use in (bar.window.lock_write, bar.window.wait_live, bar.window.close, bar.window.acquire_read):
        with pytest.raises(ArgumentError, match="a timeout is from 0"):
            use(wrong)
    for text in ("1", b"", [1]):
        with pytest.raises(TypeError, match="every wait has a deadline"):
            bar.window.lock_write(text)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="every wait has a deadline"):
        bar.window.lock_write(None)  # type: ignore[arg-type]


def test_structures_are_used_again(bar: Bar) -> None:
    """A new window starts afresh although its structure served another one."""
    for _ in range(50):
        other = Bar(name="again")
        assert (other.window.generation, other.window.flagged, other.window.reason) == (0, False, 0)
        assert other.window.state == WindowState.LIVE
        other.mmio.write32(0, 5)
        other.window.zap(3)
        other.window.revive(other.fd)
        other.close()


def test_repr(bar: Bar) -> None:
    text = repr(bar.window)
    assert text == f"<Window of 0000:01:00.0, 2097152 bytes at {bar.window.address:#x}, live>"
    bar.window.zap()
    assert "zapped" in repr(bar.window)
    bar.window.close()
    assert "closed" in repr(bar.window)

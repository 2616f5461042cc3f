"""The fault handler: bus errors, races with revive, other handlers, limits."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from vfio_user import _mmio
from vfio_user.errors import MemoryDisabledError, ZappedError
from vfio_user.memory import Mmio, Program, Window, WindowFlag, WindowState

from .conftest import MIB, PAGE, Bar, Script, Thread, array_over

Done = subprocess.CompletedProcess[str]


# -- the kernel's own SIGBUS


@pytest.mark.parametrize(
    "access",
    [
        lambda mmio: mmio.read8(0),
        lambda mmio: mmio.read32(0),
        lambda mmio: mmio.read64(PAGE),
        lambda mmio: mmio.write32(0, 1),
        lambda mmio: mmio.readinto(0, bytearray(4096)),
        lambda mmio: mmio.write_block(0, bytes(4096)),
        lambda mmio: mmio.read_block32(0, 4),
        lambda mmio: mmio.run(Program([("write32", 0, 1), ("read32", 4)])),
        lambda mmio: mmio.run(Program([("poll32", 0, 1, 0, 100000)])),
        lambda mmio: mmio.poll(0, 4, 1, 0, 5.0),
    ],
)
def test_a_guarded_access_that_meets_a_bus_error_raises(bar: Bar, access: Callable[[Mmio], object]) -> None:
    bar.decoding(on=False)
    with pytest.raises(MemoryDisabledError, match="SIGBUS"):
        access(bar.mmio)
    assert bar.window.state == WindowState.LIVE
    assert bar.window.flag == WindowFlag.BUS_ERROR
    bar.decoding(on=True)
    with pytest.raises(MemoryDisabledError):
        bar.mmio.read32(0)  # flagged until a revive: nobody knows what the device forgot
    bar.window.revive(bar.fd)
    assert not bar.window.flagged
    assert bar.mmio.read32(0) == 0


def test_a_raw_view_reads_ones_and_flags(bar: Bar) -> None:
    view, array = memoryview(bar.mmio).cast("I"), array_over(bar.mmio, "<u8")
    bar.decoding(on=False)
    before = _mmio.stats()
    assert view[5] == 0xFFFFFFFF
    after = _mmio.stats()
    assert after["served"] - before["served"] == 1
    assert after["retried"] - before["retried"] == 1, "the first fault in live memory may be a race: tried again"
    assert (array == 2**64 - 1).all()
    assert bar.window.flagged
    bar.decoding(on=True)
    bar.fill(b"\x01" * 4)
    assert view[0] == 0xFFFFFFFF, "ones stay until the revive"
    bar.window.revive(bar.fd)
    assert view[0] == 0x01010101


def test_a_bus_error_spares_other_areas(bar: Bar, make_bar: Callable[..., Bar]) -> None:
    """Among live areas only the one that failed is replaced, although both lie in one granule."""
    other = make_bar()
    other.fill(b"\x42")
    bar.window.map(MIB, PAGE, other.fd, 0)
    neighbour = memoryview(Mmio(bar.window, MIB, PAGE, [(0, PAGE)]))
    view = memoryview(bar.mmio)
    bar.decoding(on=False)
    assert view[0] == 0xFF
    assert neighbour[0] == 0x42


def test_a_device_that_answers_nowhere_is_zapped_as_a_whole(make_bar: Callable[..., Bar]) -> None:
    """When ones would need too many mappings, the window becomes one again."""
    bar = make_bar(size=32 * MIB)
    view = memoryview(bar.mmio)
    _mmio._set_ones_limit(4)
    try:
        bar.decoding(on=False)
        assert {view[offset] for offset in range(0, bar.size, MIB)} == {0xFF}
        assert bar.window.state == WindowState.ZAPPED
        assert {view[offset] for offset in range(0, bar.size, MIB)} == {0xFF}
        with pytest.raises(MemoryDisabledError):
            bar.mmio.read32(0)
    finally:
        _mmio._set_ones_limit(0)
    bar.decoding(on=True)
    bar.window.revive(bar.fd)
    assert {view[offset] for offset in range(0, bar.size, MIB)} == {0}


def test_ones_do_not_use_up_the_mappings_of_the_process(make_bar: Callable[..., Bar]) -> None:
    bar = make_bar(size=64 * MIB)
    view = memoryview(bar.mmio)
    _mmio._set_ones_limit(8)
    before = _mmio.stats()["rezapped"]
    try:
        bar.window.zap()
        for _ in range(3):
            assert {view[offset] for offset in range(0, bar.size, MIB)} == {0xFF}
    finally:
        _mmio._set_ones_limit(0)
    assert _mmio.stats()["rezapped"] - before >= 6
    bar.window.revive(bar.fd)
    assert view[0] == 0


# -- where ones are


def test_ones_everywhere_in_a_large_window(make_bar: Callable[..., Bar]) -> None:
    bar = make_bar(size=16 * MIB)
    array = array_over(bar.mmio, "<u8")
    bar.window.zap()
    assert (array == 2**64 - 1).all()
    bar.window.revive(bar.fd)
    assert (array == 0).all()


def test_system_calls_on_zapped_memory_fail_without_a_signal(bar: Bar) -> None:
    view = memoryview(bar.mmio)
    bar.window.zap()
    reader, writer = os.pipe()
    with pytest.raises(OSError, match="Bad address"):
        os.write(writer, view[:16])
    assert not bar.window.flagged
    assert view[0] == 0xFF
    assert os.write(writer, view[:16]) == 16, "once touched the page is there"
    assert os.read(reader, 16) == b"\xff" * 16
    os.close(reader)
    os.close(writer)


# -- races


def touch_without_gil(address: int) -> int:
    """Read one byte by a C call that lets go of the GIL, so that a handler can sleep in it."""
    byte = ctypes.c_ubyte()
    ctypes.memmove(ctypes.byref(byte), address, 1)
    return byte.value


def _hammer(bar: Bar, stop: threading.Event, errors: list[str]) -> None:
    view = memoryview(bar.mmio).cast("I")
    while not stop.is_set():
        value = view[17]
        if value not in (0x12345678, 0xFFFFFFFF):
            errors.append(f"raw {value:#x}")
        if touch_without_gil(bar.window.address + 1) not in (0x56, 0xFF):
            errors.append("raw, without the GIL")
        try:
            value = bar.mmio.read32(68)
        except ZappedError:
            continue
        if value != 0x12345678:
            errors.append(f"guarded {value:#x}")


@pytest.mark.parametrize("delay", [0, 300])
def test_a_race_of_fault_and_revive_never_writes_to_the_device(
    make_bar: Callable[..., Bar],
    spawn: Callable[..., Thread],
    handler_delay: Callable[[int], None],
    delay: int,
) -> None:
    """Faults while the memory comes and goes; with a delay the window of the race stands wide open."""
    bar = make_bar()
    content = b"\x78\x56\x34\x12" * (bar.size // 4)
    bar.fill(content)
    handler_delay(delay)
    stop = threading.Event()
    errors: list[str] = []
    hammers = [spawn(lambda: _hammer(bar, stop, errors)) for _ in range(4)]
    view = memoryview(bar.mmio).cast("I")
    deadline = time.monotonic() + 1.5
    cycles = 0
    while time.monotonic() < deadline:
        bar.window.zap(timeout=10)
        time.sleep(0.0005)
        bar.window.revive(bar.fd, timeout=10)
        assert view[17] == 0x12345678, "stale ones after a revive"
        assert not bar.window.flagged
        assert bar.mmio.read32(68) == 0x12345678
        cycles += 1
    stop.set()
    for hammer in hammers:
        hammer.finish()
    assert not errors
    assert cycles > 10
    assert bar.content(0, bar.size) == content, "the device's registers were written"


def test_a_fault_decided_before_a_revive_is_waited_for(
    bar: Bar, spawn: Callable[..., Thread], handler_delay: Callable[[int], None]
) -> None:
    """The handler has decided to map ones, and sleeps; the revive must not overtake it."""
    bar.fill(b"\x11" * 8)
    bar.window.zap()
    view = memoryview(bar.mmio)
    handler_delay(200_000)
    faults = _mmio.stats()["faults"]
    toucher = spawn(lambda: touch_without_gil(bar.window.address))
    while _mmio.stats()["faults"] == faults:
        time.sleep(0.001)
    start = time.monotonic()
    bar.window.revive(bar.fd)
    assert time.monotonic() - start > 0.05
    assert toucher.finish() in (0xFF, 0x11)
    assert view[0] == 0x11
    assert not bar.window.flagged
    assert bar.content(0, 8) == b"\x11" * 8


def test_a_revive_that_waits_for_a_handler_has_a_deadline(
    bar: Bar, spawn: Callable[..., Thread], handler_delay: Callable[[int], None]
) -> None:
    bar.window.zap()
    view = memoryview(bar.mmio)
    handler_delay(400_000)
    faults = _mmio.stats()["faults"]
    toucher = spawn(lambda: touch_without_gil(bar.window.address))
    while _mmio.stats()["faults"] == faults:
        time.sleep(0.001)
    with pytest.raises(TimeoutError, match="did not finish in time"):
        bar.window.revive(bar.fd, timeout=0.05)
    assert bar.window.state == WindowState.ZAPPED
    handler_delay(0)
    toucher.finish()
    bar.window.revive(bar.fd)
    assert view[0] == 0


def test_closing_waits_for_a_handler(spawn: Callable[..., Thread], handler_delay: Callable[[int], None]) -> None:
    bar = Bar()
    address = bar.window.address
    bar.window.zap()
    view = memoryview(bar.mmio)
    handler_delay(100_000)
    toucher = spawn(lambda: touch_without_gil(address))
    time.sleep(0.02)
    bar.close()
    assert bar.window.address == address, "the view is out"
    assert toucher.finish() == 0xFF
    handler_delay(0)
    view.release()
    assert bar.window.address == 0


def test_many_threads_touch_zapped_memory_at_once(make_bar: Callable[..., Bar], spawn: Callable[..., Thread]) -> None:
    bar = make_bar(size=8 * MIB)
    bar.window.zap()

    def touch() -> bool:
        return bool((array_over(bar.mmio, "<u8") == 2**64 - 1).all())

    assert all(thread.finish() for thread in [spawn(touch) for _ in range(16)])


def test_small_stacks(bar: Bar) -> None:
    view = memoryview(bar.mmio)
    results: list[int] = []
    old = threading.stack_size(64 << 10)
    try:
        for _ in range(4):
            bar.window.zap()
            thread = threading.Thread(target=lambda: results.append(view[0]))
            thread.start()
            thread.join(10)
    finally:
        threading.stack_size(old)
    assert results == [0xFF] * 4


def test_other_signals_meanwhile(make_bar: Callable[..., Bar]) -> None:
    bar = make_bar()
    view = memoryview(bar.mmio)
    ticks = 0

    def tick(number: int, frame: object) -> None:
        nonlocal ticks
        ticks += 1

    old = signal.signal(signal.SIGALRM, tick)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            bar.window.zap(timeout=5)
            assert bytes(view[:8]) == b"\xff" * 8
            bar.window.revive(bar.fd, timeout=5)
            assert bytes(view[:8]) == bytes(8)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert ticks > 50


# -- not ours


def crashed(done: Done, number: int = signal.SIGSEGV) -> bool:
    return done.returncode == -number


def test_a_wild_access_still_kills(script: Script) -> None:
    done = script("open_window(); window.zap(); assert view[0] == 255; crash()")
    assert crashed(done), done
    assert not done.stderr


def test_a_hole_in_a_live_window_still_kills(script: Script) -> None:
    """Only what is zapped, or answered by a bus error, is ours."""
    done = script("open_window(); sys.stdout.flush(); ctypes.string_at(window.address + 131072, 1)")
    assert crashed(done), done


def test_a_write_to_a_read_only_area_still_kills(script: Script) -> None:
    done = script(
        """
        w = _mmio.Window(4096); w.map(0, 4096, fd, 0, 1)
        ctypes.memset(w.address, 0, 1)
        """
    )
    assert crashed(done), done


def test_a_bus_error_elsewhere_still_kills(script: Script) -> None:
    done = script(
        """
        import mmap
        open_window()
        other = os.memfd_create("x"); os.ftruncate(other, 4096)
        plain = mmap.mmap(other, 4096)
        os.ftruncate(other, 0)
        plain[0]
        """
    )
    assert crashed(done, signal.SIGBUS), done


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGBUS])
def test_a_signal_that_was_sent_still_kills(script: Script, number: signal.Signals) -> None:
    done = script(f"open_window(); os.kill(os.getpid(), {int(number)})")
    assert crashed(done, number), done


def test_a_signal_that_was_ignored_stays_ignored(script: Script) -> None:
    done = script(
        """
        signal.signal(signal.SIGBUS, signal.SIG_IGN)
        open_window()
        os.kill(os.getpid(), signal.SIGBUS)
        window.zap(); assert view[0] == 255
        print("alive")
        """
    )
    assert done.stdout == "alive\n", done


# -- faulthandler: I installs us (open, zap and revive do), F enables it, D disables it

ORDERS = {
    "I": "open_window()",
    "FI": "faulthandler.enable(); open_window()",
    "IFI": "open_window(); faulthandler.enable(); _mmio.install_handler()",
    "IFID": "open_window(); faulthandler.enable(); _mmio.install_handler(); faulthandler.disable()",
    "IFD": "open_window(); faulthandler.enable(); faulthandler.disable()",
    "IFIFI": "open_window()" + 2 * "; faulthandler.enable(); _mmio.install_handler()",
    "FIDI": "faulthandler.enable(); open_window(); faulthandler.disable(); _mmio.install_handler()",
    "IFzap": "open_window(); faulthandler.enable()",
    "FIDzap": "faulthandler.enable(); open_window(); faulthandler.disable()",
}


# -X dev enables faulthandler before anything else: what disables it later is then the order F I D.
@pytest.mark.parametrize(
    ("order", "options"),
    [(order, ()) for order in ORDERS] + [(order, ("-X", "dev")) for order in ORDERS if order not in ("IFD", "IFID")],
)
def test_zapped_memory_with_faulthandler(script: Script, order: str, options: tuple[str, ...]) -> None:
    prepare = ORDERS[order]
    if order.endswith("zap"):
        prepare += "; window.zap()"
    else:
        prepare = prepare.replace("open_window()", "open_window(); window.zap()")
    done = script(f"{prepare}\nassert view[0] == 255 and window.flagged; print('alive')", *options)
    assert done.stdout == "alive\n", done
    assert "Fatal Python error" not in done.stderr


@pytest.mark.parametrize("order", ["FI", "IFI", "IFIFI", "FIDI", "IFzap"])
def test_a_real_crash_with_faulthandler(script: Script, order: str) -> None:
    """One traceback where faulthandler is enabled, and death by the signal in any case."""
    done = script(f"{ORDERS[order]}; crash()")
    assert crashed(done), done
    enabled = order != "FIDI"
    assert done.stderr.count("Fatal Python error: Segmentation fault") == enabled, done.stderr


def test_a_real_crash_after_faulthandler_left(script: Script) -> None:
    for order in ("IFD", "IFID", "I"):
        assert crashed(script(f"{ORDERS[order]}; crash()")), order


def test_a_known_limit_faulthandler_disabled_last(script: Script) -> None:
    """F I D: disable() puts back what was there before its enable(), and so removes us."""
    done = script("faulthandler.enable(); open_window(); window.zap(); faulthandler.disable(); view[0]")
    assert crashed(done), done
    prepare = "faulthandler.enable(); open_window(); window.zap(); faulthandler.disable()"
    done = script(f"{prepare}; _mmio.install_handler(); print(view[0])")
    assert done.stdout == "255\n", done


def test_a_known_limit_faulthandler_enabled_last(script: Script) -> None:
    """Nobody asks us again between its enable() and the touch: this is documented, and install_handler() cures it."""
    done = script("open_window(); window.zap(); faulthandler.enable(); view[0]")
    assert crashed(done), done
    done = script("open_window(); window.zap(); faulthandler.enable(); _mmio.install_handler(); print(view[0])")
    assert done.stdout == "255\n", done


def test_python_handlers_are_displaced_by_the_next_zap(script: Script) -> None:
    done = script(
        """
        open_window()
        signal.signal(signal.SIGSEGV, lambda *_: None)
        window.zap()
        print(view[0])
        """
    )
    assert done.stdout == "255\n", done


def test_a_known_limit_blocked_signals(script: Script) -> None:
    """The kernel does not ask a thread that blocks SIGSEGV: it kills."""
    done = script(
        """
        open_window(); window.zap()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGSEGV})
        view[0]
        """
    )
    assert crashed(done), done


def test_install_handler_reports_whether_it_had_to(script: Script) -> None:
    done = script(
        """
        open_window()
        print(_mmio.install_handler())
        signal.signal(signal.SIGBUS, signal.SIG_DFL)
        print(_mmio.install_handler(), _mmio.install_handler())
        """
    )
    assert done.stdout == "False\nTrue False\n", done


def test_another_handler_that_serves_faults_is_called(script: Script) -> None:
    """Chaining works for handlers that return: theirs makes the page readable, and the access goes on."""
    done = script(
        """
        import mmap
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        page = libc.mmap(None, ctypes.c_size_t(4096), 0, 0x22, -1, ctypes.c_long(0))
        calls = []
        @ctypes.CFUNCTYPE(None, ctypes.c_int)
        def theirs(number):
            calls.append(number)
            libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(4096), 3)
        class Action(ctypes.Structure):
            _fields_ = [("handler", ctypes.c_void_p), ("mask", ctypes.c_ulong * 16), ("flags", ctypes.c_int),
                        ("restorer", ctypes.c_void_p)]
        action = Action(ctypes.cast(theirs, ctypes.c_void_p))
        assert libc.sigaction(signal.SIGSEGV, ctypes.byref(action), None) == 0
        open_window(); window.zap()
        assert view[0] == 255 and not calls
        assert ctypes.string_at(page, 1) == bytes(1)
        assert calls == [signal.SIGSEGV]
        assert view[4096] == 255
        print("alive")
        """
    )
    assert done.stdout == "alive\n", done


@pytest.fixture(autouse=True)
def _no_ones_limit() -> Iterator[None]:
    yield
    _mmio._set_ones_limit(0)


def test_stats_count(bar: Bar) -> None:
    before = _mmio.stats()
    bar.window.zap()
    assert memoryview(bar.mmio)[0] == 0xFF
    after = _mmio.stats()
    assert (after["faults"] - before["faults"], after["served"] - before["served"]) == (1, 1)
    assert Window is type(bar.window)

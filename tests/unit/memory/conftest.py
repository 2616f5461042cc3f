"""A BAR to test with: a memfd stands for the device's file."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import pytest

from vfio_user import _mmio
from vfio_user.memory import Mmio, Window

PAGE = 4096
MIB = 1 << 20


def array_over(buffer: Any, dtype: str) -> numpy.ndarray[Any, Any]:
    """`numpy.frombuffer` straight on an accessor; numpy's stubs know only a few buffers before Python 3.12."""
    return numpy.frombuffer(buffer, dtype)


@dataclass
class Bar:
    """A region of one area, mapped at the start of its window."""

    size: int = 64 << 10
    name: str = "0000:01:00.0"
    writable: bool = True
    fd: int = field(init=False)
    window: Window = field(init=False)
    mmio: Mmio = field(init=False)

    def __post_init__(self) -> None:
        self.fd = os.memfd_create("bar", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, self.size)
        self.window = Window(self.size, name=self.name)
        self.window.map(0, self.size, self.fd, 0, 3 if self.writable else 1)
        self.mmio = Mmio(self.window, 0, self.size, [(0, self.size)], self.writable)

    def content(self, offset: int, size: int) -> bytes:
        """What the device has, not what the mapping shows."""
        return os.pread(self.fd, size, offset)

    def fill(self, data: bytes, offset: int = 0) -> None:
        os.pwrite(self.fd, data, offset)

    def decoding(self, on: bool) -> None:
        """Memory decoding off: the kernel answers an access with SIGBUS."""
        os.ftruncate(self.fd, self.size if on else 0)

    def close(self) -> None:
        self.window.close()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


@pytest.fixture
def make_bar() -> Iterator[Callable[..., Bar]]:
    bars: list[Bar] = []

    def make(**options: object) -> Bar:
        bars.append(Bar(**options))  # type: ignore[arg-type]
        return bars[-1]

    yield make
    for bar in bars:
        bar.close()


@pytest.fixture
def bar(make_bar: Callable[..., Bar]) -> Bar:
    return make_bar()


def num_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def num_maps() -> int:
    """Mappings of ours: of a memfd, or reserved (private, no access, nothing behind)."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return sum("memfd:" in line or line.split()[1] == "---p" for line in lines)


@pytest.fixture
def leaks() -> Iterator[None]:
    """Fail when the test leaves descriptors or mappings behind."""
    _warm_up()
    gc.collect()
    before = num_fds(), num_maps()
    yield
    gc.collect()
    assert (num_fds(), num_maps()) == before


def _warm_up() -> None:
    """Make what stays for the process's life: the file of ones, this thread's slot."""
    bar = Bar()
    bar.mmio.read32(0)
    bar.close()


class Thread(threading.Thread):
    """A thread whose exception is raised by `finish`."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self._error: BaseException | None = None
        self.result: object = None

    def run(self) -> None:
        try:
            self.result = self._work()
        except BaseException as error:  # handed over to finish()
            self._error = error

    def finish(self, timeout: float = 20.0) -> object:
        self.join(timeout)
        assert not self.is_alive(), "the thread hangs"
        if self._error is not None:
            raise self._error
        return self.result


@pytest.fixture
def spawn() -> Callable[[Callable[[], object]], Thread]:
    def start(work: Callable[[], object]) -> Thread:
        thread = Thread(work)
        thread.start()
        return thread

    return start


@pytest.fixture
def handler_delay() -> Iterator[Callable[[int], None]]:
    """Set the sleep, in microseconds, between a fault handler's decision and its deed."""
    yield _mmio._set_handler_delay
    _mmio._set_handler_delay(0)


Script = Callable[..., "subprocess.CompletedProcess[str]"]

PREAMBLE = """
import ctypes, faulthandler, os, signal, sys
from vfio_user import _mmio
from vfio_user.errors import *

fd = os.memfd_create("bar"); os.ftruncate(fd, 65536); os.pwrite(fd, bytes(range(256)), 0)

def open_window():
    global window, mmio, view
    window = _mmio.Window(65536, name="test"); window.map(0, 65536, fd, 0)
    mmio = _mmio.Mmio(window, 0, 65536, [(0, 65536)]); view = memoryview(mmio)

def crash():
    sys.stdout.flush()
    ctypes.string_at(8)
"""


@pytest.fixture
def script() -> Script:
    """Run Python code in a process of its own, with a window at hand (`open_window()`)."""

    def run(code: str, *options: str, timeout: float = 30.0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *options, "-c", PREAMBLE + textwrap.dedent(code)],
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=Path(__file__).parents[3],
        )

    return run

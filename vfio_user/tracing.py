"""Record what a program does to its devices, for Perfetto or Chrome's trace viewer."""

from __future__ import annotations

import json
import os
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from vfio_user import _mmio
from vfio_user.errors import BusyError, ClosedError, VfioOSError
from vfio_user.kernel import tracing

__all__ = ["Trace", "trace"]

_RECORD = struct.Struct("=QQQQIIHHI")
_VERBS = ("read", "write", "poll", "read block", "write block", "program")
_PERIOD = 0.05
"""Seconds from one emptying of the ring to the next."""
_DEFAULT_RECORDS = 1 << 18


class Trace:
    """A trace that is being recorded; `trace` makes one.

    Lifetime:
        From ``with`` to its end, when the file is complete. A forked child records nothing.
    Locking:
        Everything may be called from any thread. A thread of its own writes the file.
    """

    def __init__(self, path: str | os.PathLike[str], *, records: int = _DEFAULT_RECORDS) -> None:
        """Prepare a trace; see `trace`."""
        self.path = Path(path)
        """The file."""
        self.lost = 0
        """Register accesses that came faster than they could be written."""
        self._records = records
        self._pid = os.getpid()
        # Without a lock: the garbage collector may unmap a buffer, which is traced, at any moment.
        self._events: deque[dict[str, object]] = deque()
        self._failure: OSError | None = None
        self._threads: dict[int, str] = {}
        self._file: IO[str] | None = None
        self._stop = threading.Event()
        self._writer = threading.Thread(target=self._write_on, name="vfio_user trace", daemon=True)

    # -- for programs

    def mark(self, name: str, **arguments: object) -> None:
        """Put a mark of the program's own into the trace."""
        self.instant("mark", name, arguments)

    @contextmanager
    def section(self, name: str, **arguments: object) -> Iterator[None]:
        """Show a ``with`` block of the program in the trace."""
        begin = time.monotonic_ns()
        try:
            yield
        finally:
            self.span("section", name, begin, time.monotonic_ns(), arguments)

    # -- the sink

    def span(self, category: str, name: str, begin: int, end: int, arguments: dict[str, object]) -> None:
        """Take something that this thread did; see `vfio_user.kernel.tracing.Sink`."""
        self._add({"ph": "X", "cat": category, "name": name, "ts": begin / 1e3, "dur": (end - begin) / 1e3}, arguments)

    def instant(self, category: str, name: str, arguments: dict[str, object]) -> None:
        """Take something that happened now."""
        self._add({"ph": "i", "s": "t", "cat": category, "name": name, "ts": time.monotonic_ns() / 1e3}, arguments)

    def counter(self, name: str, value: int) -> None:
        """Take the value that something has from now on."""
        self._add({"ph": "C", "cat": "counter", "name": name, "ts": time.monotonic_ns() / 1e3}, {"value": value})

    def _add(self, event: dict[str, object], arguments: dict[str, object]) -> None:
        event["pid"], event["tid"], event["args"] = self._pid, threading.get_native_id(), arguments
        self._events.append(event)

    # -- the file

    def __enter__(self) -> Self:
        with _switch:
            if tracing.sink is not None:
                raise BusyError("a trace is being recorded already; one at a time")
            if self._file is not None or self._stop.is_set():
                raise ClosedError(f"the trace {self.path} was recorded before; make another one")
            try:
                self._file = self.path.open("w")
            except OSError as error:
                raise VfioOSError(error.errno or 0, f"write {self.path}") from error
            self._file.write('{"displayTimeUnit": "ns", "traceEvents": [\n')
            self._file.write(json.dumps(self._meta("process_name", self._pid, {"name": "vfio_user"})))
            _mmio.trace_start(self._records)
            tracing.sink = self
        self._writer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _switch:
            if tracing.sink is self:
                tracing.sink = None
        self._stop.set()
        if os.getpid() != self._pid:
            return
        self._writer.join()
        _mmio.trace_stop()
        assert self._file is not None
        try:
            self._file.write("\n]}\n")
            self._file.close()
        except OSError as error:
            self._failure = self._failure or error
        if self._failure is not None and kind is None:
            raise VfioOSError(self._failure.errno or 0, f"write {self.path}") from self._failure

    def _write_on(self) -> None:
        stopped = False
        while not stopped:
            stopped = self._stop.wait(_PERIOD)
            try:
                self._write_what_there_is()
            except OSError as error:  # the disk is full; what is traced goes on
                self._failure = self._failure or error

    def _write_what_there_is(self) -> None:
        assert self._file is not None
        events = [self._events.popleft() for _ in range(len(self._events))]
        data, names, lost = _mmio.trace_drain()
        if lost:
            self.lost += lost
            now = time.monotonic_ns() / 1e3
            events.append(
                {"ph": "i", "s": "g", "cat": "trace", "name": f"{lost} register accesses were lost", "ts": now}
            )
            events[-1] |= {"pid": self._pid, "tid": 0}
        self._name_threads()
        for event in events:
            self._file.write(f",\n{json.dumps(event, default=str)}")
        for begin, end, offset, value, thread, name, verb, width, _ in _RECORD.iter_unpack(data):
            self._file.write(
                f',\n{{"ph": "X", "cat": "register", "name": "{_VERBS[verb]}{8 * width or ""} {offset:#x}", '
                f'"ts": {begin / 1e3:.3f}, "dur": {(end - begin) / 1e3:.3f}, "pid": {self._pid}, "tid": {thread}, '
                f'"args": {{"region": {json.dumps(names[name])}, "offset": "{offset:#x}", {_said(verb, value)}}}}}'
            )

    def _name_threads(self) -> None:
        assert self._file is not None
        for thread in threading.enumerate():
            number = thread.native_id
            if number is not None and self._threads.get(number) != thread.name:
                self._threads[number] = thread.name
                meta = self._meta("thread_name", number, {"name": thread.name})
                self._file.write(f",\n{json.dumps(meta)}")

    def _meta(self, what: str, thread: int, arguments: dict[str, object]) -> dict[str, object]:
        return {"ph": "M", "name": what, "pid": self._pid, "tid": thread, "args": arguments}

    def __repr__(self) -> str:
        state = "recording" if tracing.sink is self else "done" if self._stop.is_set() else "not begun"
        return f"<Trace {self.path} {state}>"


_switch = threading.Lock()


def _said(verb: int, value: int) -> str:
    if verb <= 2:
        return f'"value": "{value:#x}"'
    return f'"{"steps" if verb == 5 else "bytes"}": {value}'


def _forget() -> None:
    """A forked child has no devices, and its parent writes the file."""
    global _switch
    _switch = threading.Lock()
    if tracing.sink is not None:
        tracing.sink = None
        _mmio.trace_stop()


os.register_at_fork(after_in_child=_forget)


def trace(path: str | os.PathLike[str], *, records: int = _DEFAULT_RECORDS) -> Trace:
    """Record a ``with`` block into a file that Perfetto (ui.perfetto.dev) and Chrome (about://tracing) open.

    ::

        with vfio_user.trace("edu.json") as trace:
            with vfio_user.open("0000:01:00.0") as pci, Edu(pci) as edu:
                trace.mark("before the factorial")
                edu.factorial(10)

    It has: requests to the kernel with their arguments decoded, and errno; register accesses; reads and writes through
    the device's file (configuration space); interrupts as they are taken; mapped bytes; the phases of resets; and marks
    of the program's own. Times are of the monotonic clock.

    While nobody traces, register accesses cost nothing for it, and everything else some nanoseconds. While somebody
    does, an access costs a tenth of a microsecond, and a request some microseconds.

    Args:
        path: the file; it is overwritten.
        records: register accesses that the ring holds until they are written, 48 bytes each. Those that come faster
            are counted in `Trace.lost`.

    Raises:
        BusyError: a trace is being recorded already.
        VfioOSError: the file can't be written, at the beginning or later; then the block has run all the same.
    """
    return Trace(path, records=records)

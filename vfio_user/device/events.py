"""What happens to a device from outside: one stream of events for each device."""

from __future__ import annotations

import enum
import math
import os
import select
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vfio_user.errors import ArgumentError, ClosedError, DeadlineError
from vfio_user.kernel.fd import OwnedFd, readable
from vfio_user.memory.lock import require_no_section

if TYPE_CHECKING:
    from vfio_user.device.irq import IrqIndex
    from vfio_user.device.vector import IrqVector

__all__ = ["DeviceEvent", "DeviceEvents", "EventKind"]

_JOIN_TIMEOUT = 10.0
_LONGEST_LOOK = 3600.0  # the kernel counts milliseconds in 32 bits; longer waits take several


class EventKind(enum.Enum):
    """What happened."""

    REQUEST = "request"
    """The kernel asks for the device back: it is being unbound or unplugged. Release it promptly, and touch no file of
    it in sysfs before: who unbinds it holds its lock there, and waits for you."""
    ERROR = "error"
    """The device reported an error that it could not correct (AER)."""
    WAKE = "wake"
    """A device in low power was woken up; see `vfio_user.pci.low_power.LowPower.enter_with_wakeup`."""
    GONE = "gone"
    """The device does not answer any more. Close it."""


@dataclass(frozen=True, slots=True)
class DeviceEvent:
    """One event."""

    kind: EventKind
    """What happened."""
    device: str
    """To which device, by name."""
    count: int = 1
    """How often since it was looked for last; the kernel repeats a request."""


Handler = Callable[[DeviceEvent], object]


class DeviceEvents:
    """The events of one device: ``pci.events``.

    Nothing is armed until it is used, by any of these::

        with pci.events.serve():              # a thread that does what is safe, for each kind; see `handle`
            ...
        for event in pci.events:              # or in a thread of your own; ends when the device is closed
            pci.events.handle(event)
        async for event in pci.events: ...    # or in asyncio
        pci.events.wait(timeout=1.0)          # or one at a time
        poller.register(pci.events, select.POLLIN); pci.events.poll()   # or in a loop of your own

    Lifetime:
        As its device. Closing the device ends every wait and every loop.
    Locking:
        Any thread may wait; each event goes to one of them. Handlers are called with no lock held, and may close the
        device.
    """

    def __init__(
        self,
        name: str,
        sources: Mapping[EventKind, IrqIndex],
        handlers: Mapping[EventKind, Handler],
        answers: Callable[[], bool],
    ) -> None:
        """Make the stream of a device; a bus's device does this.

        Args:
            name: of the device.
            sources: the interrupts of the kernel's own by which it tells.
            handlers: what is safe to do for each kind.
            answers: tells whether the device answers; asked after each request and each error.
        """
        self._name = name
        self._sources = dict(sources)
        self._handlers = dict(handlers)
        self._answers = answers
        self._lock = threading.RLock()
        self._pending: deque[DeviceEvent] = deque()
        self._watched: dict[int, tuple[EventKind, IrqVector]] = {}
        self._epoll: select.epoll | None = None
        self._bell: OwnedFd | None = None
        self._passing: list[tuple[EventKind, IrqVector]] = []  # the wake-up of the low power that it is in
        self._waiters = 0
        self._known_gone = False
        self.closed = False
        """Whether the device was closed."""

    # -- setting up

    def on(self, kind: EventKind, handler: Handler) -> None:
        """Choose what `handle` does for a kind, instead of the default."""
        self._handlers[kind] = handler

    def arm(self) -> None:
        """Ask the kernel for events; every way of waiting does this by itself.

        Raises:
            ClosedError: the device is closed.
            BusyError: somebody has enabled ``irqs.req`` or ``irqs.err``; events come one way only.
        """
        with self._lock:
            self._require_open()
            if self._epoll is not None:
                return
            armed: list[IrqIndex] = []
            try:
                vectors = {}
                for kind, irq in self._sources.items():
                    if irq.count:
                        (vectors[kind],) = irq.enable(1)
                        armed.append(irq)
                self._bell = OwnedFd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK), f"{self._name} events")
                self._epoll = select.epoll()
            except BaseException:
                for irq in armed:
                    irq.disable()
                raise
            self._epoll.register(self._bell, select.EPOLLIN)
            for kind, vector in (*vectors.items(), *self._passing):
                self._register(kind, vector)
            if self._pending:
                self._ring()

    def disarm(self) -> None:
        """Ask for no more events; those who wait go on waiting for what comes from this process."""
        with self._lock:
            if self._epoll is not None:
                for kind, irq in self._sources.items():
                    if any(kind is each for each, _ in self._watched.values()):
                        irq.disable()
                if self._waiters:
                    self._watched = {fd: each for fd, each in self._watched.items() if each[0] not in self._sources}
                else:
                    self._close_files()

    def _watch(self, kind: EventKind, vector: IrqVector) -> None:
        """Tell of this vector's interrupts as events, armed now or later, until it is closed."""
        with self._lock:
            self._passing = [(kind, vector)]
            self._register(kind, vector)

    def _register(self, kind: EventKind, vector: IrqVector) -> None:
        if self._epoll is not None and not self.closed:
            with suppress(ClosedError):
                fd = vector.fileno()
                self._watched[fd] = (kind, vector)
                with suppress(FileExistsError):
                    self._epoll.register(fd, select.EPOLLIN)

    # -- waiting

    def fileno(self) -> int:
        """Give a descriptor that is readable when there are events; take them by `poll` until it gives `None`."""
        self.arm()
        assert self._epoll is not None
        return self._epoll.fileno()

    def poll(self) -> DeviceEvent | None:
        """Give the next event; `None` when there is none. Never blocks. Raises as `arm`."""
        self.arm()
        with self._lock:
            if not self._pending:
                self._collect()
            return self._pending.popleft() if self._pending else None

    def wait(self, timeout: float) -> DeviceEvent:
        """Wait for the next event.

        Raises:
            ArgumentError: ``timeout`` is not a number of seconds from 0 on.
            DeadlineError: none came within ``timeout`` seconds.
            ClosedError: the device is closed, before or meanwhile.
            BusyError: see `arm`.
            LockOrderError: this thread is inside of a read section, which would keep the device from being released.
        """
        if not 0 <= timeout < math.inf:
            raise ArgumentError(f"timeout {timeout} is not a number of seconds from 0 on")
        event = self._next(time.monotonic() + timeout, lambda: False)
        if event is None:
            raise DeadlineError(f"nothing happened to {self._name} within {timeout:g} s")
        return event

    def __iter__(self) -> Iterator[DeviceEvent]:
        while True:
            try:
                event = self._next(None, lambda: False)
            except ClosedError:
                return
            if event is not None:
                yield event

    async def __aiter__(self) -> AsyncIterator[DeviceEvent]:
        while True:
            try:
                event = self.poll()
                if event is None:
                    with self._waiting() as epoll:
                        await readable(epoll.fileno())
            except ClosedError:
                return
            if event is not None:
                yield event

    def _next(self, deadline: float | None, stopped: Callable[[], bool]) -> DeviceEvent | None:
        require_no_section("waiting for events")
        while not stopped():
            event = self.poll()
            if event is not None:
                return event
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return None
            with self._waiting() as epoll:
                epoll.poll(None if left is None else min(left, _LONGEST_LOOK))
        return None

    @contextmanager
    def _waiting(self) -> Iterator[select.epoll]:
        """Keep the files open while somebody waits; who leaves last closes them, when the device is closed."""
        with self._lock:
            self._require_open()
            assert self._epoll is not None
            epoll = self._epoll
            self._waiters += 1
        try:
            yield epoll
        finally:
            with self._lock:
                self._waiters -= 1
                if self.closed and self._waiters == 0:
                    self._close_files()

    # -- handling

    def handle(self, event: DeviceEvent) -> None:
        """Do what is safe for an event, or what `on` has chosen.

        By default, on PCI: a request or a device that is gone is released (its driver is stopped, the device closed,
        no file in sysfs touched); an error is logged, and bus mastering goes off; a wake-up ends low power.
        """
        self._handlers[event.kind](event)

    @contextmanager
    def serve(self) -> Iterator[None]:
        """Handle events by a thread of their own until the ``with`` block ends or the device is closed.

        What handlers raise is logged (``vfio_user.events``), and the thread goes on. Raises as `arm`.
        """
        self.arm()
        stop = threading.Event()
        thread = threading.Thread(target=self._serve, args=(stop,), name=f"events of {self._name}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            with self._lock:
                self._ring()
            if thread is not threading.current_thread():
                thread.join(_JOIN_TIMEOUT)
            self.disarm()

    def _serve(self, stop: threading.Event) -> None:
        import logging

        while True:
            try:
                event = self._next(None, stop.is_set)
            except ClosedError:
                return
            if event is None:
                return
            try:
                self.handle(event)
            except Exception:
                logging.getLogger("vfio_user.events").exception("%s: %s was not handled", self._name, event.kind.value)

    # -- inside

    def _collect(self) -> None:
        """Turn what the kernel has told into events."""
        assert self._epoll is not None
        assert self._bell is not None
        for fd, _ in self._epoll.poll(0):
            if fd == self._bell.fileno():
                with suppress(BlockingIOError):
                    os.eventfd_read(fd)
                continue
            kind, vector = self._watched[fd]
            try:
                count = vector.drain()
            except ClosedError:
                del self._watched[fd]
                # It may be open still, and readable by what wakes its waiters.
                with suppress(OSError):
                    self._epoll.unregister(fd)
                continue
            if count:
                self._pending.append(DeviceEvent(kind, self._name, count))
                if kind in self._sources and not self._answers():
                    self._note_gone()

    def _note_gone(self) -> None:
        """Say once that the device does not answer any more."""
        with self._lock:
            if not self._known_gone and not self.closed:
                self._known_gone = True
                self._pending.append(DeviceEvent(EventKind.GONE, self._name))
                self._ring()

    def _ring(self) -> None:
        if self._bell is not None and not self._bell.closed:
            os.eventfd_write(self._bell.fileno(), 1)

    def _end(self) -> None:
        """End the stream: the device was closed."""
        with self._lock:
            self.closed = True
            if self._waiters:
                self._ring()
            else:
                self._close_files()

    def _close_files(self) -> None:
        epoll, self._epoll = self._epoll, None
        bell, self._bell = self._bell, None
        self._watched = {}
        if epoll is not None:
            epoll.close()
        if bell is not None:
            bell.close()

    def _require_open(self) -> None:
        if self.closed:
            raise ClosedError(f"{self._name} is closed")

    def __repr__(self) -> str:
        state = "closed" if self.closed else "idle" if self._epoll is None else "armed"
        return f"<DeviceEvents {self._name} {state}>"

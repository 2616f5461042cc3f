"""Unmap later, many at a time: for drivers that map and unmap at a high rate."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self

from vfio_user.errors import ArgumentError, ClosedError, ForkedError, VfioError
from vfio_user.iommu.mapper import Mapper, Unmappable, mapping_of, require_mappings

__all__ = ["DeferredUnmap"]

_IDLE = 1.0
"""Seconds without work after which the flushing thread ends; the next mapping starts another."""


class DeferredUnmap:
    """A queue of mappings whose end is put off, as the kernel's own flush queue does (``iommu.strict=0``).

    `unmap` costs no system call. The queue is flushed, with one request for each run of mappings that abut, when it
    holds ``limit`` mappings or ``max_bytes``, when the oldest has waited for ``max_delay``, and at its end.

    Until then the device still reaches the memory, and nothing of it is used again: the queue keeps it alive, its IOVA
    stays taken, and `DmaMapping.mapped` stays true. **That is the price**: for up to ``max_delay`` a device that is
    broken, or not to be trusted, can read and change memory that the driver has finished with. So don't put anything
    else into it meanwhile, don't believe what is read from it, and use `DmaMapping.unmap` where that matters.

    Lifetime:
        `close()`, or the ``with`` block, flushes. It ends with its address space at the latest. An error of a flush in
        the background is raised by the next call.
    Locking:
        All methods may be called from any thread; ``limit`` and ``max_bytes`` hold for all of them together: who
        exceeds them, flushes. The address-space lock is taken without a lock of the queue held.
    """

    def __init__(self, mapper: Mapper, *, limit: int, max_bytes: int, max_delay: float | None) -> None:
        """Make an empty queue; `AddressSpace.deferred` is the way.

        Args:
            mapper: of the address space.
            limit: mappings that may wait, above 0.
            max_bytes: bytes that may wait; a larger mapping is unmapped at once.
            max_delay: seconds that a mapping may wait; `None` for as long as the other limits allow, which needs no
                thread.
        """
        if limit <= 0 or max_bytes <= 0:
            raise ArgumentError(f"limit {limit} and max_bytes {max_bytes} must be positive")
        if max_delay is not None and not 0 < max_delay <= 3600:
            raise ArgumentError(f"max_delay {max_delay} is not a number of seconds above 0, up to 3600")
        self._mapper = mapper
        self._limit = limit
        self._max_bytes = max_bytes
        self._max_delay = max_delay
        self._changed = threading.Condition()
        self._flushing = threading.RLock()
        self._pending: dict[Unmappable, None] = {}
        self._num_bytes = 0
        self._oldest = 0.0
        self._thread: threading.Thread | None = None
        self._failures: list[VfioError] = []
        self._closed = False

    @property
    def num_pending(self) -> int:
        """How many mappings wait."""
        return len(self._pending)

    @property
    def num_bytes(self) -> int:
        """How many bytes wait."""
        return self._num_bytes

    @property
    def closed(self) -> bool:
        """Tell whether it was closed."""
        return self._closed

    def unmap(self, mapping: Unmappable) -> None:
        """Unmap a mapping, or close a buffer, a little later; twice is as once, and one that has ended stays so.

        Raises:
            ArgumentError: it is neither, or of another address space.
            ClosedError: the queue is closed.
            ExceptionGroup: a flush failed, now or in the background; what was not unmapped stays mapped.
        """
        require_mappings((mapping,))
        inner = mapping_of(mapping)
        if inner._mapper is not self._mapper:
            raise ArgumentError(f"{inner!r} is of another address space; each has its own queues")
        with self._changed:
            if self._closed:
                raise ClosedError("this queue of deferred unmaps is closed")
            if mapping not in self._pending and not inner.ended:
                if not self._pending:
                    self._oldest = time.monotonic()
                    self._wake()
                self._pending[mapping] = None
                self._num_bytes += inner.size
            full = len(self._pending) >= self._limit or self._num_bytes >= self._max_bytes or self._failures
        if full:
            self.flush()

    def flush(self) -> int:
        """Unmap what waits, and wait for a flush that is under way; give the number of bytes.

        Raises:
            ExceptionGroup: this flush failed, or one in the background; what was not unmapped stays mapped.
        """
        unmapped = self._flush()
        with self._changed:
            failures, self._failures = self._failures, []
        if failures:
            raise ExceptionGroup("deferred unmaps failed; the mappings stay", failures)
        return unmapped

    def close(self) -> None:
        """Flush, and take nothing more; closing twice does nothing. Raises as `flush`."""
        thread = self._stop()
        self.flush()
        if thread is not None and thread is not threading.current_thread():
            thread.join(_IDLE)

    def _stop(self) -> threading.Thread | None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            return self._thread

    def _abandon(self) -> None:
        """End with the address space, which has unmapped everything, or keeps what it could not."""
        self._stop()
        with self._changed:
            self._pending.clear()
            self._num_bytes = 0

    def _flush(self) -> int:
        with self._flushing:
            with self._changed:
                pending, self._pending = self._pending, {}
                self._num_bytes = 0
            try:
                unmapped, failures = self._mapper.unmap_many(list(pending))
            except ForkedError:
                return 0  # the mappings are the parent's
            except VfioError as error:
                unmapped, failures = 0, [error]
            with self._changed:
                self._failures += failures
            return unmapped

    # -- the thread

    def _wake(self) -> None:
        if self._max_delay is None:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="vfio_user deferred unmap", daemon=True)
            self._thread.start()
        else:
            self._changed.notify_all()

    def _run(self) -> None:
        assert self._max_delay is not None
        while True:
            with self._changed:
                if not self._pending and not self._changed.wait_for(lambda: self._pending or self._closed, _IDLE):
                    self._thread = None
                    return
                if self._closed:
                    return
                left = self._oldest + self._max_delay - time.monotonic()
                if left > 0:
                    self._changed.wait(left)
                    continue
            self._flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"<DeferredUnmap {self.num_pending} waiting, {self.num_bytes:#x} bytes{' closed' if self._closed else ''}>"
        )

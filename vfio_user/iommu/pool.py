"""Small DMA buffers, carved out of few large mappings."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, Self

from vfio_user.addresses import Iova
from vfio_user.errors import ArgumentError, ClosedError
from vfio_user.iommu.buffer import DmaBuffer, DmaSlice
from vfio_user.kernel.mman import Backing, round_up

if TYPE_CHECKING:
    from vfio_user.iommu.verbs import MapVerbs

__all__ = ["DmaPool", "PoolBuffer"]

_SMALLEST = 64


class PoolBuffer(DmaSlice):
    """A buffer of a `DmaPool`.

    Lifetime:
        Goes back to its pool with `close()` or the ``with`` block; it may then be handed out again at once, so the
        device must be done with it. Contents are not cleared in between.
    Locking:
        `close()` may be called from any thread.
    """

    __slots__ = ("_pool",)

    def __init__(self, pool: DmaPool, view: memoryview, iova: Iova) -> None:
        super().__init__(view, iova)
        self._pool = pool

    def close(self) -> None:
        """Give it back to its pool.

        Raises:
            ArgumentError: it was given back before.
        """
        self._pool.give(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class DmaPool:
    """Hand out small buffers of one size without a system call for each.

    The kernel's cost of DMA memory is per mapping, and the number of mappings is limited; a pool maps chunks and carves
    them. A buffer never crosses a page boundary when its size is at most a page, so one IOVA names all of it.

    Lifetime:
        `close()`, or the ``with`` block, unmaps the chunks, and with them every buffer that is still out.
    Locking:
        All methods may be called from any thread.
    """

    def __init__(
        self,
        space: MapVerbs,
        buffer_size: int,
        *,
        chunk_size: int = 2 << 20,
        iova_limit: int | None = None,
        backing: Backing | str = Backing.ANONYMOUS,
    ) -> None:
        """Make a pool; the first chunk is mapped when the first buffer is taken.

        Args:
            space: where the buffers are mapped.
            buffer_size: bytes of each; rounded up to a power of two of at least 64.
            chunk_size: bytes that are mapped at a time; at least one buffer.
            iova_limit: see `AddressSpace.alloc`.
            backing: see `AddressSpace.alloc`.
        """
        if buffer_size <= 0 or chunk_size <= 0:
            raise ArgumentError(f"buffer size {buffer_size} and chunk size {chunk_size} must be positive")
        self.buffer_size = max(_SMALLEST, 1 << (buffer_size - 1).bit_length())
        """Bytes of each buffer, a power of two."""
        self._chunk_size = round_up(max(chunk_size, self.buffer_size), self.buffer_size)
        self._space = space
        self._iova_limit = iova_limit
        self._backing = backing
        self._lock = threading.Lock()
        self._chunks: list[DmaBuffer] = []
        self._free: list[PoolBuffer] = []
        self._taken: set[PoolBuffer] = set()
        self._closed = False

    @property
    def num_free(self) -> int:
        """How many buffers can be taken without a new mapping."""
        return len(self._free)

    @property
    def num_taken(self) -> int:
        """How many buffers are out."""
        return len(self._taken)

    def take(self) -> PoolBuffer:
        """Take one buffer; see `take_many`."""
        return self.take_many(1)[0]

    def take_many(self, count: int) -> list[PoolBuffer]:
        """Take ``count`` buffers; maps more memory where it needs some.

        Raises:
            ArgumentError: ``count`` is not above 0.
            ClosedError: the pool is closed.
            VfioError: more memory can't be mapped; nothing was taken then.
        """
        if count <= 0:
            raise ArgumentError(f"count {count} is not positive")
        with self._lock:
            while len(self._free) < count:
                self._grow()
            taken = self._free[: -count - 1 : -1]
            del self._free[-count:]
            self._taken.update(taken)
        return taken

    def give(self, buffer: PoolBuffer) -> None:
        """Give one buffer back; see `give_many`."""
        self.give_many((buffer,))

    def give_many(self, buffers: Iterable[PoolBuffer]) -> None:
        """Give buffers back, all or none.

        Raises:
            ArgumentError: one is not out: given back before, named twice, or of another pool.
        """
        returned = list(buffers)
        with self._lock:
            if self._closed:
                return
            before = len(self._taken)
            self._taken.difference_update(returned)
            if before - len(self._taken) != len(returned):
                self._refuse(returned)
            self._free.extend(returned)

    def _refuse(self, returned: list[PoolBuffer]) -> NoReturn:
        """Take back what was taken off the list, and say what was wrong with it."""
        free = set(self._free)
        wanted = set(returned)
        out = {each for each in wanted if each._pool is self and each not in free}
        self._taken |= out
        if strangers := wanted - out:
            raise ArgumentError(f"{strangers.pop()!r} is not out of this pool; none was given back")
        raise ArgumentError("a buffer was named twice; none was given back")

    def close(self) -> None:
        """Unmap everything; closing twice does nothing.

        Raises:
            ExceptionGroup: the kernel did not confirm some of the unmaps.
        """
        with self._lock:
            self._closed = True
            chunks, self._chunks = self._chunks, []
            self._free.clear()
            self._taken.clear()
        failures: list[Exception] = []
        for chunk in chunks:
            try:
                chunk.close()
            except Exception as error:
                failures.append(error)
        if failures:
            raise ExceptionGroup("some chunks of the pool were not unmapped", failures)

    def _grow(self) -> None:
        if self._closed:
            raise ClosedError("the pool is closed")
        chunk = self._space.alloc(self._chunk_size, iova_limit=self._iova_limit, backing=self._backing)
        self._chunks.append(chunk)
        size, view, base = self.buffer_size, chunk.view, chunk.iova
        # Reversed, so that buffers are taken in the order of their addresses.
        self._free[:0] = [
            PoolBuffer(self, view[at : at + size], Iova(base + at)) for at in range(chunk.size - size, -1, -size)
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = " closed" if self._closed else ""
        return f"<DmaPool {self.buffer_size} bytes, {self.num_taken} taken, {self.num_free} free{state}>"

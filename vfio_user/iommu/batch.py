"""Collect what is to be unmapped, then unmap it with as few system calls as can be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Self

from vfio_user.errors import ArgumentError, VfioError
from vfio_user.iommu.mapper import Unmappable, mapping_of, require_mappings

__all__ = ["UnmapBatch"]


class UnmapBatch:
    """What devices and this process are to reach no more: mappings of one or several address spaces, and addresses.

    Mappings that abut are unmapped by one request for each run, all mappings of an address space by one. Addresses of
    this process that abut are handed on as one range. What fails stays mapped, keeps its memory, and stays in the
    batch, so that it can be tried again.

    ::

        with UnmapBatch() as batch:
            batch.extend(mappings)                       # of any address spaces
            batch.add_windows(windows, by=zap_many)      # of any devices, whose memory locks the caller holds

    Lifetime:
        `run`, or the end of the ``with`` block, unmaps.
    Locking:
        For one thread at a time. Takes the address-space locks, and what the functions that it is given take.
    """

    def __init__(self) -> None:
        self._mappings: list[Unmappable] = []
        self._ranges: dict[Callable[[int, int], object], list[tuple[int, int]]] = {}
        self._windows: dict[Callable[[Sequence[Any]], object], list[Any]] = {}

    def add(self, mapping: Unmappable) -> None:
        """Add a mapping, or a buffer, which is closed then. One that ends meanwhile is left out."""
        self.extend((mapping,))

    def extend(self, mappings: Iterable[Unmappable]) -> None:
        """Add many.

        Raises:
            ArgumentError: something is neither a mapping nor a buffer; none was added.
        """
        wanted = list(mappings)
        require_mappings(wanted)
        self._mappings += wanted

    def add_range(self, address: int, size: int, by: Callable[[int, int], object]) -> None:
        """Add addresses of this process.

        Args:
            address: where the range begins.
            size: bytes, above 0.
            by: called with address and size of each run of ranges that abut or overlap.

        Raises:
            ArgumentError: the size is not above 0.
        """
        if size <= 0:
            raise ArgumentError(f"size {size} is not positive")
        self._ranges.setdefault(by, []).append((address, address + size))

    def add_windows(self, windows: Iterable[Any], by: Callable[[Sequence[Any]], object]) -> None:
        """Add windows of device memory; ``by`` is called once with all of them, and merges them by itself."""
        self._windows.setdefault(by, []).extend(windows)

    def __len__(self) -> int:
        others = (*self._ranges.values(), *self._windows.values())
        return len(self._mappings) + sum(map(len, others))

    def run(self) -> int:
        """Unmap everything: devices lose it first, then this process.

        Returns:
            The number of bytes that devices reach no more.

        Raises:
            ExceptionGroup: some of it failed; the rest was unmapped nevertheless.
        """
        failures: list[Exception] = []
        unmapped = self._run_mappings(failures)
        self._run_ranges(failures)
        self._run_windows(failures)
        if failures:
            raise ExceptionGroup("not everything was unmapped; what is left is kept", failures)
        return unmapped

    def _run_mappings(self, failures: list[Exception]) -> int:
        unmapped = 0
        pending, self._mappings = self._mappings, []
        while pending:
            mapper = mapping_of(pending[0])._mapper
            others: list[Unmappable] = []
            try:
                size, refused = mapper.unmap_many(pending, others)
            except VfioError as error:  # of a forked child, for one
                size, refused = 0, [error]
                others = [each for each in pending if mapping_of(each)._mapper is not mapper]
            unmapped += size
            if refused:
                failures += refused
                mine = (each for each in pending if mapping_of(each)._mapper is mapper)
                self._mappings += [each for each in mine if not mapping_of(each).ended]
            pending = others
        return unmapped

    def _run_ranges(self, failures: list[Exception]) -> None:
        pending, self._ranges = self._ranges, {}
        for by, ranges in pending.items():
            for begin, end in _joined(ranges):
                try:
                    by(begin, end - begin)
                except Exception as error:
                    failures.append(error)
                    self._ranges.setdefault(by, []).append((begin, end))

    def _run_windows(self, failures: list[Exception]) -> None:
        pending, self._windows = self._windows, {}
        for by, windows in pending.items():
            try:
                by(windows)
            except Exception as error:
                failures.append(error)
                self._windows[by] = windows

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.run()

    def __repr__(self) -> str:
        return f"<UnmapBatch {len(self)} to unmap>"


def _joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Merge ranges that abut or overlap."""
    joined: list[tuple[int, int]] = []
    for begin, end in sorted(ranges):
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((begin, end))
    return joined

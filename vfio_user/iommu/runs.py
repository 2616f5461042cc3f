"""Unmap many mappings of one address space with as few system calls as can be."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from vfio_user.addresses import Iova
from vfio_user.errors import VfioError, VfioOSError
from vfio_user.iommu.mapping import DmaMapping

if TYPE_CHECKING:
    from vfio_user.iommu.backend import IommuBackend
    from vfio_user.iommu.books import Books, Run
    from vfio_user.iommu.bulk import Results

__all__ = ["Unmapped", "ask", "unconfirmed", "unmap", "unmap_all"]

Unmapped: TypeAlias = tuple[int, list[VfioError]]
"""Bytes that were unmapped, and why others were not."""

_EVERYWHERE = (0, 1 << 64)


def unmap(
    backend: IommuBackend, books: Books, items: Sequence[object], runs: list[Run], count: int, *, keep: bool = False
) -> Unmapped:
    """Unmap mappings; the caller keeps everybody else out of the address space.

    One request for each run, and ``UNMAP_ALL`` for everything that there is: each back end unmaps several whole
    mappings by one request. A request that fails, or comes short, is made again for each of its mappings, so that one
    that can't be unmapped does not keep the others.

    Args:
        backend: the address space's.
        books: the address space's; mappings whose end is not confirmed stay in them.
        items: the mappings; other objects are left alone.
        runs: what the mappings cover, but for suspended ones, as `Books.runs` says.
        count: how many those are.
        keep: suspend them only, instead of taking them from the books.
    """
    sizes = [size for _, size in runs]
    if count == books.num_reached and not keep:
        results: Results = [_ask_for_all(backend, sum(sizes))] if runs else []
        asked, wanted = [_EVERYWHERE] * len(results), [sum(sizes)] * len(results)
    else:
        results = backend.unmap_runs(runs) if runs else []
        asked, wanted = runs, sizes
    if results == wanted or (any(isinstance(each, VfioOSError) for each in results) and backend.emptied):
        _finish(books, items, runs, keep)
        return sum(sizes), []
    mappings = list({each for each in items if isinstance(each, DmaMapping) and books.holds(each)})
    away = [each for each in mappings if each.suspended]
    reached = sorted((each for each in mappings if not each.suspended), key=lambda each: each.iova)
    gone, failures = _sort_out(backend, reached, asked, wanted, results)
    runs, _, _ = books.runs(gone, backend.mode.translates)
    _finish(books, gone if keep else [*gone, *away], runs, keep)
    return sum(size for _, size in runs), failures


def unmap_all(backend: IommuBackend, books: Books) -> int:
    """Unmap everything there is, by one request, and give the number of bytes; see `unmap`.

    Raises:
        VfioError: the kernel refused, or unmapped less than there was.
    """
    expected = books.num_bytes
    try:
        unmapped = backend.unmap_all()
    except VfioOSError:
        if not backend.emptied:
            raise
        unmapped = expected
    if unmapped < expected:
        raise VfioError(f"the kernel unmapped {unmapped:#x} bytes of {expected:#x}; the memory is kept")
    books.end_all()
    return unmapped


def ask(backend: IommuBackend, by: Callable[[Iova, int], int], iova: Iova, size: int) -> int:
    """Unmap one range ``by`` a verb of the back end; give the bytes: all, where the kernel ended everything before.

    Raises:
        VfioError: the kernel refused.
    """
    try:
        return by(iova, size)
    except VfioOSError:
        if backend.emptied:
            return size
        raise


def unconfirmed(mapping: DmaMapping, result: int | VfioError) -> VfioError:
    """Make the error for a mapping that was not unmapped."""
    if isinstance(result, VfioError):
        result.add_note(f"{mapping!r} is still mapped; its memory is kept")
        return result
    return VfioError(
        f"the kernel unmapped {result:#x} bytes of {mapping!r}; its memory is kept, because a device may still "
        "write to it"
    )


def _ask_for_all(backend: IommuBackend, size: int) -> int | VfioError:
    try:
        return min(backend.unmap_all(), size)  # what is not in the books is nobody's loss
    except VfioOSError as error:
        return error


def _finish(books: Books, items: Sequence[object], runs: Iterable[Run], keep: bool) -> None:
    if keep:
        books.suspend(each for each in items if isinstance(each, DmaMapping))
    else:
        books.end(items, runs)


def _sort_out(
    backend: IommuBackend, reached: list[DmaMapping], asked: Iterable[Run], wanted: Iterable[int], results: Results
) -> tuple[list[DmaMapping], list[VfioError]]:
    """Say which mappings have ended, and why others have not; those of bad requests are tried one by one."""
    gone: list[DmaMapping] = []
    failures: list[VfioError] = []
    at = 0
    for (iova, size), want, result in zip(asked, wanted, results, strict=True):
        first = at
        while at < len(reached) and reached[at].iova < iova + size:
            at += 1
        members = reached[first:at]
        if result == want:
            gone += members
        else:
            ended, why = _one_by_one(backend, members, result)
            gone += ended
            failures += why
    return gone, failures


def _one_by_one(
    backend: IommuBackend, members: Sequence[DmaMapping], whole: int | VfioError
) -> tuple[list[DmaMapping], list[VfioError]]:
    if len(members) == 1:
        return [], [unconfirmed(members[0], whole)]
    results = backend.unmap_runs([(each.iova, each.size) for each in members])
    # What the first request took, the others do not see; when all of them together make up the whole, all is gone.
    if sum(each for each in (whole, *results) if isinstance(each, int)) == sum(each.size for each in members):
        return list(members), []
    gone, kept = [], []
    for mapping, result in zip(members, results, strict=True):
        if result == mapping.size or (isinstance(whole, VfioError) and _is_absent(result)):
            gone.append(mapping)
        else:
            kept.append(unconfirmed(mapping, result))
    return gone, kept


def _is_absent(result: int | VfioError) -> bool:
    """Tell that nothing is mapped there: a request that failed half-way had taken it. iommufd says so, type1 not."""
    return isinstance(result, VfioOSError) and result.errno == errno.ENOENT

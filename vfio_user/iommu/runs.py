"""Unmap many mappings of one address space with as few system calls as can be."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from vfio_user.errors import ArgumentError, VfioError, VfioOSError
from vfio_user.iommu.mapping import DmaMapping

if TYPE_CHECKING:
    from vfio_user.iommu.backend import IommuBackend
    from vfio_user.iommu.books import Books

__all__ = ["Span", "Unmapped", "merge", "unconfirmed", "unmap", "unmap_all"]

Span: TypeAlias = tuple[int, int]
"""First IOVA of a range, and the one after its last."""
Unmapped: TypeAlias = tuple[int, list[VfioError]]
"""Bytes that were unmapped, and why others were not."""


def merge(mappings: Iterable[DmaMapping]) -> list[Span]:
    """Cover mappings by as few ranges as can be, ordered, without an IOVA that is none of theirs.

    Every back end unmaps several whole mappings by one request; none needs to be split for that.

    Raises:
        ArgumentError: two overlap, so one of them was given twice.
    """
    spans: list[Span] = []
    begin = end = -1
    # Mappings that were made one after the other abut, upwards or downwards: most are merged without being sorted.
    for mapping in mappings:
        first = mapping.iova
        after = first + mapping.size
        if first == end:
            end = after
        elif after == begin:
            begin = first
        else:
            spans.append((begin, end))
            begin, end = first, after
    spans.append((begin, end))
    del spans[0]  # what the loop began with
    return _joined(spans) if len(spans) > 1 else spans


def _joined(spans: list[Span]) -> list[Span]:
    spans.sort()
    joined = spans[:1]
    for begin, end in spans[1:]:
        if begin > joined[-1][1]:
            joined.append((begin, end))
        elif begin == joined[-1][1]:
            joined[-1] = (joined[-1][0], end)
        else:
            raise ArgumentError(f"IOVA {begin:#x} is in the list twice")
    return joined


def _each(mappings: Iterable[DmaMapping]) -> list[Span]:
    # Without an IOMMU there is no table of ranges in the kernel: what is next to each other is not one.
    return sorted({(mapping.iova, mapping.iova + mapping.size) for mapping in mappings})


def unmap(backend: IommuBackend, books: Books, mappings: Sequence[DmaMapping], *, keep: bool = False) -> Unmapped:
    """Unmap mappings; the caller keeps everybody else out of the address space.

    Those that abut are unmapped by one request, all that there are by ``UNMAP_ALL``. A request that fails, or comes
    short, is made again for each of its mappings, so that one that can't be unmapped does not keep the others.

    Args:
        backend: the address space's.
        books: the address space's; mappings whose end is not confirmed stay in them.
        mappings: all of them in the books.
        keep: suspend them only, instead of taking them from the books.
    """
    if not keep and books.is_all(mappings):
        return _unmap_these_all(backend, books, mappings)
    reached = [mapping for mapping in mappings if not mapping.suspended] if books.num_suspended else mappings
    try:
        spans = merge(reached) if backend.mode.translates else _each(reached)
    except ArgumentError:
        once = list(dict.fromkeys(mappings))
        if len(once) == len(mappings):
            raise
        return unmap(backend, books, once, keep=keep)
    results = backend.unmap_runs([(begin, end - begin) for begin, end in spans]) if spans else []
    failures: list[VfioError] = []
    if any(result != end - begin for result, (begin, end) in zip(results, spans, strict=True)):
        gone, failures = _sort_out(backend, reached, dict(zip(spans, results, strict=True)))
        spans = merge(gone)
        mappings = gone if keep else gone + [mapping for mapping in mappings if mapping.suspended]
    if keep:
        books.suspend(mappings)
    else:
        books.end(mappings, spans)
    return sum(end - begin for begin, end in spans), failures


def unmap_all(backend: IommuBackend, books: Books) -> int:
    """Unmap everything there is, by one request, and give the number of bytes; see `unmap`.

    Raises:
        VfioError: the kernel refused, or unmapped less than there was.
    """
    unmapped = backend.unmap_all()
    expected = books.num_bytes
    if unmapped < expected:
        raise VfioError(f"the kernel unmapped {unmapped:#x} bytes of {expected:#x}; the memory is kept")
    books.end_all()
    return unmapped


def _unmap_these_all(backend: IommuBackend, books: Books, mappings: Sequence[DmaMapping]) -> Unmapped:
    result: int | VfioError
    try:
        result = backend.unmap_all()
    except VfioOSError as error:
        result = error
    if isinstance(result, int) and result >= books.num_bytes:
        books.end_all()
        return result, []
    gone, failures = _one_by_one(backend, mappings, result)
    spans = merge(gone)
    books.end(gone, spans)
    return sum(end - begin for begin, end in spans), failures


def _sort_out(
    backend: IommuBackend, mappings: Iterable[DmaMapping], results: dict[Span, int | VfioError]
) -> tuple[list[DmaMapping], list[VfioError]]:
    """Say which mappings have ended, and why others have not; those of bad runs are tried one by one."""
    ordered = sorted(mappings, key=lambda each: each.iova)
    gone: list[DmaMapping] = []
    failures: list[VfioError] = []
    at = 0
    for (begin, end), result in results.items():
        first = at
        while at < len(ordered) and ordered[at].iova < end:
            at += 1
        members = ordered[first:at]
        if result == end - begin:
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


def unconfirmed(mapping: DmaMapping, result: int | VfioError) -> VfioError:
    """Make the error for a mapping that was not unmapped."""
    if isinstance(result, VfioError):
        result.add_note(f"{mapping!r} is still mapped; its memory is kept")
        return result
    return VfioError(
        f"the kernel unmapped {result:#x} bytes of {mapping!r}; its memory is kept, because a device may still "
        "write to it"
    )

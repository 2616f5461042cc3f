"""Put back what was changed: by this process, by one that crashed, or by one that left it so."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vfio_user.addresses import PciAddress
from vfio_user.binding import nodes
from vfio_user.binding.journal import Journal, boot_id
from vfio_user.binding.moves import Fate, judge, put_back
from vfio_user.binding.record import Record
from vfio_user.binding.transaction import deadline_after, refuse_in_use, use_kinds
from vfio_user.binding.uses import UseKind, uses
from vfio_user.errors import ArgumentError, BindError, VfioError
from vfio_user.kernel import sysfs

__all__ = ["Restored", "records", "restore"]

_WORDS = {
    Fate.BACK: "was back already",
    Fate.GONE: "is gone",
    Fate.REPLACED: "is another device now, and was left alone",
    Fate.REBOOTED: "was chosen a driver anew when the machine booted",
    Fate.TAKEN: "was bound by somebody else since, and left alone",
}
#: Uses that do not depend on the driver: they did not keep it from being bound, so they don't keep it from going back.
_FOR_EVER = frozenset({UseKind.BRIDGE, UseKind.DISPLAY})


@dataclass(frozen=True, slots=True)
class Restored:
    """What `restore` did about one device."""

    address: PciAddress
    """Which device."""
    fate: Fate
    """How it was found; only `Fate.OURS` was changed."""
    driver: str | None
    """Its driver now."""
    note: str
    """The same in words: ``"is bound to nvme again"``."""


def records(*, journal: Path | str | None = None) -> tuple[Record, ...]:
    """Give what the journal holds: the devices that are changed now; needs no rights.

    Raises:
        JournalError: a file in it is not a record.
    """
    book = Journal(journal)
    found = (book.get(address) for address in book.addresses())
    return tuple(each for each in found if each is not None)


def restore(
    *addresses: str | PciAddress,
    force_in_use: Iterable[UseKind | str] = (),
    timeout: float = 30.0,
    journal: Path | str | None = None,
) -> tuple[Restored, ...]:
    """Put devices back to what they were before `bind` or `unbind`: driver, override, virtual functions, node owners.

    Works after a crash of whoever had changed them, at whatever step. A device that is not ours to put back any more
    (rebooted, replaced, bound by somebody else) is left alone and forgotten.

    Args:
        addresses: which devices; all that are recorded by default.
        force_in_use: ways of being in use that are no reason to refuse; ``"open"`` asks the process to let go.
        timeout: seconds for all of it.
        journal: folder of the records, ``/run/vfio-user/journal`` by default.

    Raises:
        ArgumentError: nothing is recorded for an address.
        BindError: some could not be put back; all others were, and their records are kept for another try.
        BusyError: another process holds the journal.
        JournalError: the journal can't be trusted or read.
    """
    deadline = deadline_after(timeout)
    forced = use_kinds(force_in_use)
    wanted = [PciAddress.parse(address) for address in addresses]
    book = Journal(journal)
    if not wanted and not book.addresses():
        return ()
    done: list[Restored] = []
    failures: list[str] = []
    with book.locked(deadline):
        present = book.addresses()
        for address in wanted:
            if address not in present:
                raise ArgumentError(
                    f"nothing is recorded for {address}: it was not bound by this tool, or was restored since. "
                    f"To give it to a driver of the kernel: vfio-user bind --driver NAME {address}"
                )
        for address in wanted or present:
            try:
                record = book.get(address)
                assert record is not None, "the lock is held: it was there a moment ago"
                done.append(_restore(record, forced, deadline))
                book.remove(address)
            except VfioError as error:
                failures.append(f"{address}: {error}")
    if failures:
        raise BindError("; ".join(failures))
    return tuple(done)


def _restore(record: Record, forced: frozenset[UseKind], deadline: float) -> Restored:
    fate, function = judge(record, boot_id()), sysfs.PciFunction(record.address)
    if fate is not Fate.OURS:
        if fate is Fate.BACK:
            nodes.give_back(record.before.nodes, record.nodes)
        return Restored(record.address, fate, function.driver, _WORDS[fate])
    if function.driver != record.before.driver:
        refuse_in_use(function, [use for use in uses(function) if use.kind not in _FOR_EVER], forced)
    note = put_back(function, record, deadline)
    driver = function.driver
    words = f"is bound to {driver} again" if driver is not None else "has no driver again"
    return Restored(record.address, fate, driver, note or words)

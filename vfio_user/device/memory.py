"""A device's mapped memory, taken away and given back: what every writer of the memory lock does."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING

from vfio_user.errors import ForkedError, VfioError
from vfio_user.iommu.suspend import suspend
from vfio_user.kernel import log
from vfio_user.memory import LockSet, MemoryLock, WindowFlag, WindowState, ZapReason, zap_many

if TYPE_CHECKING:
    from vfio_user._mmio import Window
    from vfio_user.device.p2p import PeerMapping

__all__ = ["DeviceMemory", "locked", "take_away"]


class DeviceMemory:
    """The memory of one device that is mapped: its window, its memory lock, and what peers reach of it.

    Who takes the memory away holds the lock for writing from before `take_away` until after `give_back`, unless the
    memory is to stay away (decoding off, low power): then readers are let in again, and are refused by name.

    Lifetime:
        Lives as long as its device. A device without mapped memory has one too, which does nothing.
    Locking:
        `take_away` and `give_back` need the memory lock for writing; see `locked`. Peers are mapped and noted inside
        of a read section, so none comes up meanwhile.
    """

    def __init__(self, window: Window | None) -> None:
        self.window = window
        """Its addresses; `None` when nothing is mapped."""
        self._peers: list[PeerMapping] = []
        self._lock = threading.Lock()

    @property
    def live(self) -> bool:
        """Tell whether the memory is there, as far as this process knows."""
        return self.window is None or self.window.state == WindowState.LIVE

    @property
    def reason(self) -> ZapReason:
        """Why it is away; `ZapReason.NONE` while it is not."""
        if self.window is None or self.live:
            return ZapReason.NONE
        try:
            return ZapReason(self.window.reason)
        except ValueError:  # a number of the caller's own
            return ZapReason.NONE

    @property
    def refused(self) -> bool:
        """Tell whether the kernel has answered an access with SIGBUS since the memory was given back last."""
        return self.window is not None and self.live and self.window.flag == WindowFlag.BUS_ERROR

    @property
    def peers(self) -> tuple[PeerMapping, ...]:
        """The mappings through which other devices reach this memory, those that are away for now included."""
        with self._lock:
            self._peers = [each for each in self._peers if not each.ended]
            return tuple(self._peers)

    def add_peer(self, mapping: PeerMapping) -> PeerMapping:
        """Note a mapping, to take it away with the memory."""
        with self._lock:
            self._peers.append(mapping)
        return mapping

    def take_away(self, reason: ZapReason) -> None:
        """Take the memory from the peers, then from this process; see the function `take_away`."""
        take_away((self,), reason)

    def give_back(self, fd: int, timeout: float = 10.0) -> list[VfioError]:
        """Map everything again at the same addresses, then for the peers at the same IOVAs.

        Args:
            fd: the device's file.
            timeout: seconds for fault handlers that are still running.

        Returns:
            What went wrong with peers; the memory itself is there.

        Raises:
            VfioOSError: the memory can't be mapped; it stays away.
            DeadlineError: fault handlers did not finish.
        """
        if self.window is not None:
            self.window.revive(fd, timeout)
            log.debug("memory", "memory of %s is back", self.window.name)
        return self.resume_peers()

    def resume_peers(self) -> list[VfioError]:
        """Map the peers' mappings again; give what went wrong."""
        failures: list[VfioError] = []
        for peer in self.peers:
            try:
                peer._resume()
            except VfioError as error:
                error.add_note(f"{peer!r} did not come back; devices meet a fault there. peer.restore() tries again")
                failures.append(error)
        return failures

    def close(self, timeout: float) -> list[VfioError]:
        """End the peers' mappings and give the addresses back; closing twice does nothing.

        Returns:
            What the kernel refused of the peers' mappings.

        Raises:
            MemoryLockBusyError: a reader did not leave within ``timeout`` seconds; nothing is closed.
        """
        failures: list[VfioError] = []
        if self.window is None or self.window.closed:
            return failures
        deadline = time.monotonic() + timeout
        if self.window.state != WindowState.FORKED:
            self.window.lock_write(timeout)
        try:
            for peer in self.peers:
                try:
                    with suppress(ForkedError):  # the mapping is the parent's
                        peer.unmap()
                except VfioError as error:
                    failures.append(error)
            self.window.close(max(0.0, deadline - time.monotonic()))
        finally:
            if self.window.write_locked():
                self.window.unlock_write()
        return failures

    def __repr__(self) -> str:
        what = "nothing mapped" if self.window is None else WindowState(self.window.state).name.lower()
        return f"<DeviceMemory {what}, {len(self.peers)} peers>"


def locked(memories: Iterable[DeviceMemory], timeout: float) -> AbstractContextManager[None]:
    """Take the memory locks of one device or of several for writing, all or none.

    One is waited for; several are tried, so that no deadlock comes of two threads that have them the other way round.

    Raises:
        MemoryLockBusyError: readers did not leave within ``timeout`` seconds; names device and threads.
        LockOrderError: this thread is inside of a read section.
        ClosedError: a device is closed.
    """
    windows = [each.window for each in memories if each.window is not None]
    if not windows:
        return nullcontext()
    if len(windows) == 1:
        return MemoryLock(windows[0]).writing(timeout)
    return LockSet(windows).writing(timeout)


def take_away(memories: Sequence[DeviceMemory], reason: ZapReason) -> None:
    """Take the memory of devices away: peers' mappings in one batch, then all windows with one call for each run.

    The caller holds all the memory locks for writing. If it fails, what was taken from the peers is given back.

    Raises:
        VfioError: the kernel refused.
    """
    with _given_back_on_failure(memories):
        suspend(peer._mapping for each in memories for peer in each.peers)
        windows = [each.window for each in memories if each.window is not None]
        zap_many(windows, reason)
    log.debug("memory", "memory of %s is away: %s", ", ".join(each.name for each in windows), reason.name.lower())


@contextmanager
def _given_back_on_failure(memories: Sequence[DeviceMemory]) -> Iterator[None]:
    try:
        yield
    except VfioError as error:
        for failure in (failure for each in memories if each.live for failure in each.resume_peers()):
            error.add_note(str(failure))
        raise

"""Address spaces: what devices see of memory."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from vfio_user.addresses import IovaRange
from vfio_user.errors import ArgumentError, BusyError, ClosedError, ForkedError, UnsupportedError
from vfio_user.iommu import explain
from vfio_user.iommu.backend import IommuBackend, open_backend
from vfio_user.iommu.deferred import DeferredUnmap
from vfio_user.iommu.dirty import DirtyTracking
from vfio_user.iommu.files import SpaceFiles
from vfio_user.iommu.mapper import Mapper, Unmappable
from vfio_user.iommu.mapping import DmaMapping
from vfio_user.iommu.modes import IommuMode, best_mode
from vfio_user.iommu.verbs import MapVerbs
from vfio_user.kernel.fd import OwnedFd
from vfio_user.kernel.sysfs import VfioNode

__all__ = ["AddressSpace"]


class AddressSpace(MapVerbs):
    """The memory that a set of devices can reach, and the IOVAs at which they reach it.

    Every device opened with ``address_space=`` shares it. What it is made of (container and groups, ...) is its
    `mode`.

    Lifetime:
        `close()`, or the ``with`` block, unmaps everything at once. Devices may be closed before or after: the
        container stays open until the last device that is attached goes.
    Locking:
        All methods may be called from any thread. The address-space lock covers the book-keeping only; it is never
        held over a map or unmap, so several threads pin memory at the same time.
    """

    def __init__(self, mode: IommuMode | str = "auto", *, allow_noiommu: bool = False) -> None:
        """Open the back end.

        Args:
            mode: one of `IommuMode`, or ``"auto"``: the best one that the machine has.
            allow_noiommu: must be given for the modes without an IOMMU, which protect nothing.

        Raises:
            UnsupportedError: the machine has no such mode.
            VfioOSError: the node can't be opened; the message says what to do.
        """
        chosen = best_mode() if mode == "auto" else IommuMode.parse(mode)
        if not chosen.translates and not allow_noiommu:
            raise ArgumentError(explain.noiommu_not_allowed("the device"))
        self._begin(open_backend(chosen))

    @classmethod
    def take_over(cls, files: SpaceFiles) -> Self:
        """Make one of files that another process has opened, or this one before it executed another program.

        It owns the files then, also when this fails. Devices that are attached already are let in by `admit`.

        Raises:
            VfioOSError: the files are not what they are said to be.
            UnsupportedError: the kernel lacks the mode.
        """
        self = cls.__new__(cls)
        self._begin(open_backend(files.mode, files))
        return self

    def _begin(self, backend: IommuBackend) -> None:
        self._mapper = Mapper(backend)
        self._attach_lock = threading.Lock()
        self._deferred: weakref.WeakSet[DeferredUnmap] = weakref.WeakSet()
        self._tracking: DirtyTracking | None = None
        self._users = 1  # this object itself, and one for each attached device

    # -- what it is

    @property
    def mode(self) -> IommuMode:
        """Which back end it uses."""
        return self.backend.mode

    @property
    def closed(self) -> bool:
        """Tell whether it was closed."""
        return self._mapper.stopped

    @property
    def iova_ranges(self) -> tuple[IovaRange, ...]:
        """The IOVAs that can be mapped; needs an attached device. None where nothing is translated."""
        return self._mapper.require_ready().ranges

    @property
    def page_sizes(self) -> int:
        """Bit mask of the IOMMU's page sizes; the lowest is the granule of every address and size."""
        self._require_open()
        return self.backend.info().page_sizes

    @property
    def dma_avail(self) -> int | None:
        """How many more mappings the kernel allows; `None` where it does not count."""
        self._require_open()
        return self.backend.info().dma_avail

    @property
    def mappings(self) -> tuple[DmaMapping, ...]:
        """The mappings there are, ordered by IOVA."""
        return self._mapper.books.in_order()

    # -- devices

    @property
    def backend(self) -> IommuBackend:
        """What it is made of, for what has no verb here: an `IommufdBackend` has the iommufd, ... ."""
        return self._mapper.backend

    def attach(self, node: VfioNode, *, vf_token: str | None = None) -> OwnedFd:
        """Let a device use this address space, and open it. `vfio_user.open` is the usual way.

        The caller closes the returned descriptor, which takes the device out, and then calls `detach`.

        Raises:
            UnsupportedError: the device has no IOMMU and this mode needs one, or the other way round.
            VfioOSError: a system call failed; the message says what to do.
        """
        with self._attach_lock:
            self._require_open()
            if node.noiommu is self.mode.translates:
                raise UnsupportedError(explain.wrong_mode(node.name, self.mode.value, node.noiommu))
            self._users += 1  # the back end stays while the device is being opened, which several may be at a time
        try:
            device = self.backend.attach(node, vf_token=vf_token)
            try:
                with self._attach_lock:
                    self._require_open()
                    self._mapper.learn()
            except BaseException:
                device.close()
                raise
        except BaseException:
            self.detach()
            raise
        return device

    def admit(self, device: OwnedFd) -> None:
        """Let a device in that was attached before the files came here; the caller closes it as after `attach`.

        Raises:
            ClosedError: the address space is closed; so is the device then.
            VfioOSError: the kernel says that nothing is attached.
        """
        try:
            with self._attach_lock:
                self._require_open()
                self._mapper.learn()
                self._users += 1
        except BaseException:
            device.close()
            raise

    def confine(self, window: IovaRange) -> None:
        """Give no IOVA outside of a window, for as long as the address space lives: what a device says that it reaches.

        For devices that reach less than the kernel names; opening one does this. What is mapped already stays.
        """
        self._mapper.books.confine(window)

    def detach(self) -> None:
        """Say that a device that was attached is closed."""
        with self._attach_lock:
            self._drop_user()

    def track_dirty(self) -> DirtyTracking:
        """Begin to track which pages devices write to; see `DirtyTracking`, which says how exact that is.

        Modes type1v2 (``VFIO_IOMMU_DIRTY_PAGES``) and iommufd (page tables with `HwptAllocFlags.DIRTY_TRACKING`, to
        which the devices are moved while it lasts).

        Raises:
            UnsupportedError: the mode can't, or with iommufd the IOMMU of a device; or no device is attached yet.
            BusyError: it is tracked already.
        """
        with self._attach_lock:
            self._mapper.require_ready()
            if self._tracking is not None and self._tracking.running:
                raise BusyError("this address space is tracked already; one DirtyTracking at a time")
            self._tracking = DirtyTracking(self._mapper, self.backend.start_dirty_log(), self._attach_lock)
            return self._tracking

    # -- taking memory away

    def unmap_many(self, mappings: Iterable[Unmappable]) -> int:
        """Take mappings from the devices with as few requests as can be; give the number of bytes.

        Mappings that abut are unmapped by one request, and all that there are by one. Those that have ended are left
        out. All are tried.

        Raises:
            ArgumentError: something is no mapping, or one of another address space; nothing was unmapped.
            ExceptionGroup: the kernel did not confirm some; those, and their memory, are kept.
        """
        self._require_open()
        unmapped, failures = self._mapper.unmap_many(list(mappings))
        if failures:
            raise ExceptionGroup("some mappings were not unmapped", failures)
        return unmapped

    def unmap_all(self) -> int:
        """Take everything from the devices in one call; give the number of bytes.

        Raises:
            VfioError: the kernel unmapped less than there was.
        """
        self._require_open()
        return self._mapper.unmap_all()

    def invalidate_vaddrs(self) -> int:
        """Make the kernel forget where in this process all mapped memory is; devices go on reaching it.

        For a process that is replaced while its devices work: it lets go of the addresses, hands the container and the
        memory files on (to the program that it executes, or to another process), and the next one says by `adopt`
        where it has the same memory now. ``VFIO_DMA_UNMAP_FLAG_VADDR``; modes type1 and type1v2. With iommufd there is
        no need: memory files are mapped without an address there, and `Iommufd.change_process` hands them over.

        Returns:
            The number of bytes that this concerns.

        Raises:
            UnsupportedError: the mode can't.
            VfioIoctlError: EBUSY with a mediated device; EINVAL when some are invalid already, and nothing changed.
        """
        self._require_open()
        return self.backend.invalidate_vaddrs()

    def deferred(self, *, limit: int = 256, max_bytes: int = 64 << 20, max_delay: float | None = 0.01) -> DeferredUnmap:
        """Make a queue of mappings that are unmapped a little later, many at a time; see `DeferredUnmap`."""
        self._require_open()
        queue = DeferredUnmap(self._mapper, limit=limit, max_bytes=max_bytes, max_delay=max_delay)
        self._deferred.add(queue)
        return queue

    def close(self) -> None:
        """Unmap everything and let go; closing twice does nothing.

        Raises:
            VfioError: see `unmap_all`; it is closed nevertheless, and with the last device the mappings end.
        """
        with self._attach_lock:
            if self.closed:
                return
            try:
                if self._tracking is not None:
                    self._tracking._stop()
                self._mapper.stop()
            except ForkedError:
                pass  # the mappings are the parent's
            finally:
                for queue in tuple(self._deferred):
                    queue._abandon()
                self._drop_user()

    # -- inside

    def _require_open(self) -> None:
        if self.closed:
            raise ClosedError("the address space is closed")

    def _drop_user(self) -> None:
        self._users -= 1
        if self._users == 0:
            self._mapper.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = " closed" if self.closed else ""
        return f"<AddressSpace {self.mode.value} {len(self._mapper.books)} mappings{state}>"

"""Interrupt indexes: INTx, MSI, MSI-X, ERR, REQ and their vectors."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from vfio_user._uapi import lib
from vfio_user.device.info import IrqInfo
from vfio_user.device.vector import IrqVector
from vfio_user.errors import ArgumentError, BoundsError, BusyError, UnsupportedError
from vfio_user.kernel import log
from vfio_user.kernel.fd import OwnedFd
from vfio_user.kernel.uapi import IrqFlags

if TYPE_CHECKING:
    from vfio_user.device.base import VfioDevice

__all__ = ["IrqIndex", "IrqVectors", "ResampleEvent"]

_NONE = -1


class IrqVectors(tuple[IrqVector, ...]):
    """The vectors of one `IrqIndex.enable`.

    Lifetime:
        Leaving its ``with`` block disables the index, and with it closes the vectors.
    Locking:
        Fixed when it is made; see `IrqIndex`.
    """

    _index: IrqIndex

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._index.disable()


class ResampleEvent:
    """Unmask a level interrupt by signalling an eventfd, without an ioctl.

    Lifetime:
        Belongs to its `IrqIndex`; disabling the index closes it.
    Locking:
        Any thread may signal.
    """

    def __init__(self, name: str) -> None:
        self._fd = OwnedFd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK), name)

    def fileno(self) -> int:
        """Give the eventfd: writing to it unmasks the interrupt."""
        return self._fd.fileno()

    def signal(self) -> None:
        """Unmask the interrupt; it fires again at once if the device still asserts it."""
        os.eventfd_write(self._fd.fileno(), 1)

    def _close(self) -> None:
        self._fd.close()


class IrqIndex:
    """One kind of interrupt of a device, with its vectors.

    Lifetime:
        Lives as long as its device. What was enabled is disabled by `disable()`, by the ``with`` block of `enable`, or
        by closing the device.
    Locking:
        A lock of its own serialises enable, disable, add and remove; masking and triggering need none. Take no
        memory lock around these calls: the kernel takes its own.
    """

    def __init__(self, vdev: VfioDevice, info: IrqInfo, label: str) -> None:
        self._vdev = vdev
        self.info = info
        """What the kernel says of it."""
        self.label = label
        """Its name in the PCI specification or the uAPI: ``"MSI-X"``."""
        self._lock = threading.RLock()
        self._vectors: dict[int, IrqVector] = {}
        self._size = 0
        self._armed = False  # the kernel refuses to disarm what is not
        self._resample: ResampleEvent | None = None

    @property
    def count(self) -> int:
        """How many vectors the device has; 0 when it has none of the kind."""
        return self.info.count

    @property
    def flags(self) -> IrqFlags:
        """Abilities: eventfd, maskable, automasked, no resize."""
        return self.info.flags

    @property
    def vectors(self) -> tuple[IrqVector, ...]:
        """The vectors that are enabled, ordered by number."""
        with self._lock:
            return tuple(self._vectors[number] for number in sorted(self._vectors))

    def enable(self, count: int = 1) -> IrqVectors:
        """Enable the first ``count`` vectors, each with an eventfd: ``VFIO_DEVICE_SET_IRQS``.

        Raises:
            UnsupportedError: the device has none of the kind.
            BoundsError: it has fewer than ``count``.
            BusyError: some are enabled already.
            VfioIoctlError: the kernel refused: EINVAL while another kind is enabled, ENOSPC or EBUSY when it has no
                vectors left.
        """
        self._require()
        if not 1 <= count <= self.count:
            raise BoundsError(f"{count} vectors of {self._name}: it has {self._vectors_there()}, and the least is 1")
        with self._lock:
            if self._vectors:
                raise BusyError(f"{self._name} has {len(self._vectors)} vectors enabled; disable() them first")
            created = {number: self._make(number) for number in range(count)}
            try:
                self._set_eventfds(0, [created[number].fileno() for number in range(count)])
            except BaseException:
                _close(created.values())
                raise
            self._vectors, self._size = created, count
            log.debug("irq", "%s: %d vectors enabled", self._name, count)
            vectors = IrqVectors(self.vectors)
            vectors._index = self
            return vectors

    def add(self, number: int) -> IrqVector:
        """Enable one more vector while others are live.

        Raises:
            BusyError: it is enabled already.
            UnsupportedError: this kernel or device can't add vectors to those that `enable` has set up.
        """
        self._require_vector(number)
        with self._lock:
            if number in self._vectors:
                raise BusyError(f"vector {number} of {self._name} is enabled already")
            if number >= self._size > 0 and self.flags & IrqFlags.NORESIZE:
                raise UnsupportedError(
                    f"{self._name} has {self._size} vectors set up, and this kernel can't add one to a live interrupt "
                    f"(NORESIZE); disable(), then enable({number + 1})"
                )
            vector = self._make(number)
            try:
                self._set_eventfds(number, [vector.fileno()])
            except BaseException:
                vector._close()
                raise
            self._vectors[number] = vector
            self._size = max(self._size, number + 1)
            return vector

    def remove(self, number: int) -> None:
        """Disable one vector while others stay live.

        Raises:
            ArgumentError: it is not enabled.
        """
        with self._lock:
            vector = self._vectors.get(number)
            if vector is None:
                raise ArgumentError(f"vector {number} of {self._name} is not enabled")
            if len(self._vectors) == 1:
                self.disable()
                return
            self._set_eventfds(number, [_NONE])
            del self._vectors[number]
            vector._close()

    def disable(self) -> None:
        """Disable all vectors and close their eventfds; disabling twice does nothing.

        Raises:
            VfioIoctlError: the kernel refused; the eventfds are closed nevertheless.
        """
        with self._lock:
            try:
                self.quiesce()
            finally:
                self._forget()

    def mask(self, number: int = 0) -> None:
        """Hold a vector back: ``VFIO_IRQ_SET_ACTION_MASK``. INTx only, as of now.

        Raises:
            UnsupportedError: the kernel can't mask this kind.
        """
        self._mask(number, lib.VFIO_IRQ_SET_ACTION_MASK)

    def unmask(self, number: int = 0) -> None:
        """Let a vector through again: ``VFIO_IRQ_SET_ACTION_UNMASK``.

        The kernel masks an automasked interrupt when it delivers it; one that the device still asserts fires again.
        """
        self._mask(number, lib.VFIO_IRQ_SET_ACTION_UNMASK)

    def trigger(self, number: int = 0) -> None:
        """Make the kernel deliver a vector as if the device had sent it: loopback, for tests.

        Raises:
            ArgumentError: the vector is not enabled.
        """
        if number not in self._vectors:
            raise ArgumentError(f"vector {number} of {self._name} is not enabled")
        self._set(lib.VFIO_IRQ_SET_DATA_NONE | lib.VFIO_IRQ_SET_ACTION_TRIGGER, number, 1)

    def resample(self) -> ResampleEvent:
        """Give an eventfd that unmasks the interrupt when it is signalled; the index must be enabled.

        Raises:
            UnsupportedError: the kind is not maskable.
            ArgumentError: it is not enabled.
        """
        with self._lock:
            if not self.flags & IrqFlags.MASKABLE:
                raise UnsupportedError(f"{self._name} can't be masked, so there is nothing to unmask")
            if not self._vectors:
                raise ArgumentError(f"{self._name} is not enabled")
            if self._resample is None:
                event = ResampleEvent(f"{self._name} resample")
                try:
                    self._set_resample(event)
                except BaseException:
                    event._close()
                    raise
                self._resample = event
            return self._resample

    def rearm(self) -> None:
        """Set everything up again after a reset: the eventfds have survived it, their triggers have not."""
        with self._lock:
            if not self._vectors:
                return
            fds = [self._vectors[n].fileno() if n in self._vectors else _NONE for n in range(self._size)]
            self._set_eventfds(0, fds)
            if self._resample is not None:
                self._set_resample(self._resample)

    def quiesce(self) -> None:
        """Stop delivery but keep the eventfds, for `rearm` after a reset."""
        with self._lock:
            if self._vectors and self._armed:
                # Not as a user: closing the device ends here, and waits for its users before.
                flags = lib.VFIO_IRQ_SET_DATA_NONE | lib.VFIO_IRQ_SET_ACTION_TRIGGER
                self._vdev.ops.set_irqs(self._vdev, self.info.index, flags, 0, 0, b"")
                self._armed = False

    # -- inside

    @property
    def _name(self) -> str:
        return f"{self._vdev.name} {self.label}"

    def _require(self) -> None:
        if self.count == 0:
            raise UnsupportedError(f"{self._vdev.name} has no {self.label} interrupt")

    def _require_vector(self, number: int) -> None:
        self._require()
        if not 0 <= number < self.count:
            raise BoundsError(f"there is no vector {number} of {self._name}: it has {self._vectors_there()}")

    def _vectors_there(self) -> str:
        return f"{self.count} (0 to {self.count - 1})" if self.count > 1 else "1 (0)"

    def _make(self, number: int) -> IrqVector:
        return IrqVector(number, f"{self._name} {number}")

    def _mask(self, number: int, action: int) -> None:
        self._require_vector(number)
        if not self.flags & IrqFlags.MASKABLE:
            raise UnsupportedError(f"the kernel can't mask {self._name}; use the device's own mask registers")
        self._set(lib.VFIO_IRQ_SET_DATA_NONE | action, number, 1)

    def _set_resample(self, event: ResampleEvent) -> None:
        flags = lib.VFIO_IRQ_SET_DATA_EVENTFD | lib.VFIO_IRQ_SET_ACTION_UNMASK
        self._set(flags, 0, 1, struct.pack("=i", event.fileno()))

    def _set_eventfds(self, start: int, fds: list[int]) -> None:
        flags = lib.VFIO_IRQ_SET_DATA_EVENTFD | lib.VFIO_IRQ_SET_ACTION_TRIGGER
        self._set(flags, start, len(fds), struct.pack(f"={len(fds)}i", *fds))
        self._armed = True

    def _set(self, flags: int, start: int, count: int, data: bytes = b"") -> None:
        with self._vdev.user():
            self._vdev.ops.set_irqs(self._vdev, self.info.index, flags, start, count, data)

    def _forget(self) -> None:
        _close(self._vectors.values())
        self._vectors, self._size, self._armed = {}, 0, False
        if self._resample is not None:
            self._resample._close()
            self._resample = None

    def __repr__(self) -> str:
        return f"<IrqIndex {self._name} {len(self._vectors)} of {self.count}>"


def _close(vectors: Iterable[IrqVector]) -> None:
    for vector in vectors:
        vector._close()

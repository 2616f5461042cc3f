"""The bus-neutral device: what every VFIO device is, whatever bus it sits on."""

from __future__ import annotations

import enum
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING

from vfio_user._mmio import Window
from vfio_user.device.features import DeviceFeatures
from vfio_user.device.health import DeviceHealth
from vfio_user.device.info import DeviceInfo
from vfio_user.device.irq import IrqIndex
from vfio_user.device.kinds import kind_name
from vfio_user.device.memory import DeviceMemory
from vfio_user.device.ops import DeviceOps
from vfio_user.device.region import Region
from vfio_user.device.window import map_regions
from vfio_user.errors import BoundsError, BusyError, ClosedError, DeadlineError, UnsupportedError
from vfio_user.iommu import AddressSpace
from vfio_user.iommu.iommufd import BoundDevice
from vfio_user.kernel import log
from vfio_user.kernel.fd import OwnedFd
from vfio_user.memory import ZapReason

if TYPE_CHECKING:
    from vfio_user.device.display import Display
    from vfio_user.device.migration import Migration

__all__ = ["DeviceState", "VfioDevice", "open_devices"]

_registry: weakref.WeakValueDictionary[str, VfioDevice] = weakref.WeakValueDictionary()
_registry_lock = threading.Lock()


class DeviceState(enum.Enum):
    """Where a device is in its life."""

    INIT = "init"
    """Made; nobody can use it yet."""
    REGISTERED = "registered"
    """In use."""
    UNREGISTERED = "unregistered"
    """No new users; those that were in have left or are leaving."""
    CLOSED = "closed"
    """Its file is closed."""


class _User:
    """Count one user of a device in and out; the device's file stays open in between."""

    __slots__ = ("_vdev",)

    def __init__(self, vdev: VfioDevice) -> None:
        self._vdev = vdev

    def __enter__(self) -> int:
        return self._vdev._enter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._vdev._leave()


class VfioDevice:
    """A device opened through VFIO, whatever its bus; embedded in the bus's own device class.

    Lifetime:
        init (the constructor), `register`, use, `unregister` (waits for users that are in), `close`. The constructor
        takes over the descriptor, also when it fails. The object that it is embedded in lives exactly as long.
    Locking:
        Every method may be called from any thread. `user` counts in-flight calls; register accesses are covered by
        the window's memory lock instead.
    """

    def __init__(self, name: str, ops: DeviceOps, fd: OwnedFd, space: AddressSpace) -> None:
        self._outer: tuple[object, object] | None = None
        self.name = name
        """Its name on its bus: a PCI address, a UUID, ..."""
        self.ops = ops
        """What is done with it, one call at a time."""
        self.address_space = space
        """What it reaches of memory."""
        self._fd = fd
        self._condition = threading.Condition()
        self._close_lock = threading.RLock()
        self._users = 0
        self._opened = False
        self.state = DeviceState.INIT
        """Where it is in its life."""
        self.memory = DeviceMemory(None)
        """Its mapped memory, as it is taken away and given back."""
        self._verdict: DeviceHealth | None = None
        self._gone_listeners: list[Callable[[], None]] = []
        try:
            ops.init(self)
            self.info: DeviceInfo = ops.device_info(self)
            """What the kernel says of it."""
            infos = [ops.region_info(self, index) for index in ops.region_indexes(self)]
            areas = {each.index: (each, ops.mappable_areas(self, each)) for each in infos}
            window, mapped = map_regions(fd.fileno(), name, areas)
            self.memory = DeviceMemory(window)
            regions = {each.index: Region(self, each, mapped.get(each.index)) for each in infos if each.size}
            last = max((each.index for each in infos), default=-1)
            self.regions: tuple[Region | None, ...] = tuple(regions.get(index) for index in range(last + 1))
            """Its regions by index; `None` where the device has none."""
            self.irqs: tuple[IrqIndex, ...] = tuple(
                IrqIndex(self, ops.irq_info(self, index), ops.irq_label(self, index))
                for index in range(self.info.num_irqs)
            )
            """Its interrupt kinds by index; those that it lacks have a count of 0."""
        except BaseException:
            self._release(0.0)
            raise

    # -- life

    def register(self) -> None:
        """Let users in; once in a device's life.

        Raises:
            BusyError: it, or another device of its name, is registered in this process already.
            ClosedError: it was unregistered or closed before.
        """
        with _registry_lock:
            other = _registry.get(self.name)
            if self.state is DeviceState.REGISTERED or (other not in (None, self) and not other._fd.closed):
                raise BusyError(f"{self.name} is open in this process already")
            if self.state is not DeviceState.INIT:
                raise ClosedError(f"{self.name} is {self.state.value}; open it again")
            _registry[self.name] = self
        # Without the lock: the op may well open another device.
        self._opened = True
        self.ops.open_device(self)
        self.state = DeviceState.REGISTERED
        log.info("device", "%s is open (%s)", self.name, self.ops.name)

    def unregister(self, timeout: float = 10.0) -> None:
        """Let nobody in any more, and wait for those that are in.

        Raises:
            DeadlineError: some did not leave within ``timeout`` seconds; the device stays unregistered, call again.
        """
        with self._condition:
            if self.state is DeviceState.REGISTERED:
                self.state = DeviceState.UNREGISTERED
            if not self._condition.wait_for(lambda: self._users == 0, timeout):
                raise DeadlineError(f"{self._users} calls are still in {self.name} after {timeout:g} s")

    def close(self, timeout: float = 10.0) -> None:
        """Unregister, disable interrupts, take the mappings away, and close the file; closing twice does nothing.

        Raises:
            DeadlineError: see `unregister`; nothing is closed then, call again.
            MemoryLockBusyError: somebody holds the memory lock; the file is not closed then, call again.
            VfioError: something else failed on the way; the file is closed nevertheless.
        """
        with self._close_lock:
            if self.state is DeviceState.CLOSED:
                return
            deadline = time.monotonic() + timeout
            self.unregister(timeout)
            with ExitStack() as stack:
                stack.callback(lambda: self._release(max(0.0, deadline - time.monotonic())))
                # A forked child has no file to ask through, and leaves the device to its parent.
                if self._opened and not self._fd.closed:
                    self._opened = False
                    stack.callback(self.ops.close_device, self)
                    for irq in self.irqs:
                        stack.callback(irq.disable)

    def _release(self, timeout: float) -> None:
        # A mapping that stays holds the device's file open, and with it the device: the window goes first.
        failures = self.memory.close(timeout)
        self.state = DeviceState.CLOSED
        with _registry_lock:
            if _registry.get(self.name) is self:
                del _registry[self.name]
        self._fd.close()
        self.address_space.detach()
        log.info("device", "%s is closed", self.name)
        for more in failures[1:]:
            failures[0].add_note(f"also: {more}")
        if failures:
            raise failures[0]

    @property
    def closed(self) -> bool:
        """Tell whether it was closed."""
        return self.state is DeviceState.CLOSED

    # -- state

    @property
    def forked(self) -> bool:
        """Tell whether it was opened by the parent process, which alone may use it."""
        return self._fd.forked

    @property
    def window(self) -> Window | None:
        """The addresses that its regions are mapped at; `None` when it has none that can be mapped."""
        return self.memory.window

    @property
    def health(self) -> DeviceHealth:
        """What state it is in, as far as this process knows."""
        if self._verdict is not None:
            return self._verdict
        if self.memory.refused:
            return DeviceHealth.REFUSED
        return DeviceHealth.MEMORY_OFF if self.memory.reason is ZapReason.DISABLED else DeviceHealth.OK

    def judge(self, verdict: DeviceHealth | None) -> None:
        """Say what state it is in, where its memory does not tell; `None` takes that back. For resets."""
        self._verdict = verdict
        if verdict is DeviceHealth.GONE:
            for tell in self._gone_listeners:
                tell()

    def on_gone(self, tell: Callable[[], None]) -> None:
        """Have a function called when the device is found not to answer any more; it must neither wait nor raise."""
        self._gone_listeners.append(tell)

    # -- use

    def user(self) -> _User:
        """Count as a user: ``with vdev.user() as fd:`` keeps the file open until the block ends.

        Raises:
            ClosedError: the device is not registered any more.
        """
        return _User(self)

    def fileno(self) -> int:
        """Give the device's descriptor.

        Raises:
            ClosedError: it is closed.
        """
        return self._fd.fileno()

    @property
    def features(self) -> DeviceFeatures:
        """What it can do beyond regions and interrupts."""
        return DeviceFeatures(self)

    @property
    def display(self) -> Display:
        """Its display, where it is a virtual one.

        Raises:
            UnsupportedError: it has none.
        """
        from vfio_user.device.display import Display  # few devices have one: imported when it is asked for

        return Display(self)

    @property
    def migration(self) -> Migration:
        """Its migration: states, saving, loading.

        Raises:
            UnsupportedError: it can't be migrated.
        """
        from vfio_user.device.migration import Migration  # as above

        return Migration(self)

    @property
    def iommufd(self) -> BoundDevice | None:
        """Its file as one that is bound to an iommufd; `None` when it was opened through its group."""
        return self._fd if isinstance(self._fd, BoundDevice) else None

    def region(self, index: int) -> Region:
        """Give a region by its index.

        Raises:
            BoundsError: the device has no such region; the message lists those that it has.
        """
        region = self.regions[index] if 0 <= index < len(self.regions) else None
        if region is None:
            have = ", ".join(str(each.index) for each in self.regions if each is not None) or "none"
            raise BoundsError(f"{self.name} has no region {index}; it has: {have}")
        return region

    def find_region(self, kind: int, subtype: int) -> Region:
        """Give a device-specific region by what it is.

        Args:
            kind: one of `RegionType`, or `vendor_type` of a PCI vendor.
            subtype: which of them.

        Raises:
            UnsupportedError: the device has none; the message lists those that it has.
        """
        typed = {each.info.type: each for each in self.regions if each is not None and each.info.type is not None}
        if (kind, subtype) not in typed:
            have = ", ".join(kind_name(*each) for each in typed) or "none"
            raise UnsupportedError(f"{self.name} has no region {kind_name(kind, subtype)!r}; of such it has: {have}")
        return typed[kind, subtype]

    def _enter(self) -> int:
        with self._condition:
            if self.state is not DeviceState.REGISTERED:
                self._fd.fileno()  # a forked child is told so
                raise ClosedError(f"{self.name} is {self.state.value}")
            fd = self._fd.fileno()
            self._users += 1
            return fd

    def _leave(self) -> None:
        with self._condition:
            self._users -= 1
            if self._users == 0:
                self._condition.notify_all()

    def __repr__(self) -> str:
        health = "" if self.closed or self.health is DeviceHealth.OK else f", {self.health.value}"
        return f"<VfioDevice {self.name} {self.ops.name} {self.state.value}{health}>"


def open_devices() -> tuple[VfioDevice, ...]:
    """Give the devices that are registered in this process, ordered by name."""
    with _registry_lock:
        # A forked child has the parent's objects, and none of its devices.
        found = [each for each in _registry.values() if each.state is DeviceState.REGISTERED and not each._fd.closed]
    return tuple(sorted(found, key=lambda each: each.name))

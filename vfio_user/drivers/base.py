"""The base of drivers: what a device means is up to them, how they meet it is here."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import ClassVar, Protocol, Self

from vfio_user.addresses import PciId
from vfio_user.device.regmap import RegisterMap
from vfio_user.device.reset import ResetListener
from vfio_user.errors import BusyError, UnsupportedError
from vfio_user.pci.config import ConfigSpace
from vfio_user.pci.device import PciDevice

__all__ = ["Driven", "Driver", "DriverBase"]


class Driven(Protocol):
    """A device of any bus that can have a driver."""

    driver: ResetListener | None
    """Who drives it, and is told of its resets."""

    @property
    def name(self) -> str:
        """Its name on its bus."""


class DriverBase:
    """The life of a driver, whatever bus its device sits on.

    A subclass brings the device up in `probe`, quiets it in `remove`, and may take part in resets. It keeps its device
    under a name of its own choice.

    Lifetime:
        `start` (or the ``with`` block) probes; `stop` (or its end) removes. The device stays open: it belongs to who
        opened it, and outlives the driver.
    Locking:
        The hooks are called without any lock of ours held.
    """

    register_maps: ClassVar[tuple[type[RegisterMap], ...]] = ()
    """The maps of its registers, for ``vfio-user regs`` and ``vfio-user watch``; see `Driver.find_registers`."""

    def __init__(self, device: Driven) -> None:
        """Take a device, which is not touched yet."""
        self._device = device
        self._started = False

    # -- hooks

    def probe(self) -> None:
        """Bring the device up. If it raises, `remove` is not called: undo what was done first."""

    def remove(self) -> None:
        """Quiet the device: no DMA, no interrupts; give back what `probe` took."""

    def reset_prepare(self) -> None:
        """Get ready for a reset: stop work, account for what is in flight.

        Soon after, register accesses fail until `reset_done`. What it raises can't keep the reset off: it is told by a
        `NotRestoredError` afterwards. After a reset that failed it is called again for the next one, with the memory
        away already.
        """

    def reset_done(self) -> None:
        """Bring the device up again after a reset: registers have their power-on values, interrupts are armed again.

        Also called when a reset was called off (a lock was busy, the kernel refused): registers are then as before.
        """

    # -- life

    def start(self) -> None:
        """Probe the device.

        Raises:
            BusyError: another driver has it.
        """
        if self._device.driver is not None:
            raise BusyError(f"{self._device.name} is driven by {type(self._device.driver).__name__} already")
        self._device.driver = self
        try:
            self.probe()
        except BaseException:
            self._device.driver = None
            raise
        self._started = True

    def stop(self) -> None:
        """Remove the driver from its device; stopping twice does nothing."""
        if self._started:
            self._started = False
            try:
                self.remove()
            finally:
                self._device.driver = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._device.name}{'' if self._started else ' stopped'}>"


class Driver(DriverBase):
    """A driver for one kind of PCI device.

    A subclass names what it drives in `match`. It *has* its device, as ``self.pci``::

        class Edu(Driver):
            match = (PciId(0x1234, 0x11E8),)

            def probe(self) -> None:
                self.bar = self.pci.bar(0)

        with vfio_user.open("0000:01:00.0") as pci, Edu(pci) as edu:
            ...

    Lifetime:
        See `DriverBase`.
    Locking:
        See `DriverBase`.
    """

    match: ClassVar[tuple[PciId, ...]] = ()
    """The devices that this driver drives, by ids or class code."""

    def __init__(self, pci: PciDevice) -> None:
        """Take a device, which is not touched yet.

        Raises:
            UnsupportedError: it is not one of `match`.
        """
        if not self.matches(pci):
            config = pci.config
            raise UnsupportedError(
                f"{type(self).__name__} does not drive {pci.name} "
                f"({config.vendor_id:04x}:{config.device_id:04x}, class {config.class_code:06x})"
            )
        super().__init__(pci)
        self.pci = pci
        """The device that it drives."""

    @classmethod
    def find_registers(cls, config: ConfigSpace) -> Iterator[tuple[type[RegisterMap], int, int]]:
        """Give each of its register maps with BAR and offset, for a device with this configuration space.

        By default they are `register_maps`, at the start of the BAR that each names.
        """
        return ((each, each.bar, 0) for each in cls.register_maps)

    @classmethod
    def matches(cls, pci: PciDevice) -> bool:
        """Tell whether a device is one that this driver drives."""
        config = pci.config
        ids = (config.vendor_id, config.device_id, config.class_code)
        return any(each.matches(*ids) for each in cls.match)

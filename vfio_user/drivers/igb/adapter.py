"""The life of an 82576 function. What it is used for is up to its subclasses."""

from __future__ import annotations

import abc
import contextlib
from typing import TYPE_CHECKING

from vfio_user.addresses import PciId
from vfio_user.drivers.igb.control import IgbRegisters
from vfio_user.drivers.igb.errors import IgbNotRunningError
from vfio_user.drivers.igb.registers import IgbRegisterMap
from vfio_user.drivers.resettable import ResettableDriver

if TYPE_CHECKING:
    from vfio_user.device.irq import IrqVectors

__all__ = ["IgbAdapter"]


class IgbAdapter(ResettableDriver):
    """Brings a function up, resets it and quiets it; `Igb` and `IgbCopyEngine` say what it does in between.

    A subclass allocates memory in `_allocate`, and writes its registers in `_configure`, which is called again after
    each reset.

    Lifetime:
        See `Driver`. Probing resets the function, turns bus mastering and MSI-X on; removing resets it, and turns both
        off.
    Locking:
        See `ResettableDriver`.
    """

    match = (PciId(0x8086, 0x10C9),)
    register_maps = (IgbRegisterMap,)
    _not_running = IgbNotRunningError

    registers: IgbRegisters
    """The controller's registers."""

    @abc.abstractmethod
    def _num_vectors(self) -> int:
        """Tell how many MSI-X vectors are used; 0 for none."""

    @abc.abstractmethod
    def _allocate(self, stack: contextlib.ExitStack, vectors: IrqVectors | None) -> None:
        """Allocate what lives as long as the driver is started; ``stack`` gives it back."""

    @abc.abstractmethod
    def _configure(self) -> None:
        """Set everything up in a function that was just reset, and switch it on."""

    @property
    def mac(self) -> bytes:
        """Its station address, 6 bytes."""
        self._require_running()
        return self._mac

    def read_eeprom(self, word: int) -> int:
        """Read a word of the EEPROM: 16 bits; see `IgbRegisters.read_eeprom`."""
        with self._life:
            self._require_running()
            return self.registers.read_eeprom(word)

    def _prepare(self, stack: contextlib.ExitStack) -> None:
        self.registers = IgbRegisters(self.pci.bar(0), self.name)
        vectors = None
        if self._num_vectors():
            vectors = self.pci.irqs.msix.enable(self._num_vectors())
            stack.callback(self.pci.irqs.msix.disable)
        self._allocate(stack, vectors)
        stack.callback(self._stop_for_good)

    def _switch_on(self) -> None:
        self.registers.reset()
        self.registers.claim()
        self._mac = self.registers.mac()
        self._configure()

    def _quiesce(self) -> None:
        self.registers.reset()

"""The channel I/O transport of virtio: its commands (virtio 1.2, 4.3).

Queues are beyond it: their addresses stand in the data of a command, which nobody translates, so a device that has an
address space of its own does not find them.
"""

from __future__ import annotations

import enum
import struct

from vfio_user.ccw.device import CcwDevice
from vfio_user.ccw.program import CcwFlag, ChannelProgram
from vfio_user.ccw.status import SenseId
from vfio_user.drivers.base import DriverBase
from vfio_user.drivers.virtio.errors import VirtioUnsupportedError
from vfio_user.errors import BoundsError
from vfio_user.iommu.buffer import DmaBuffer

__all__ = ["CcwCommand", "VirtioCcw"]

_VIRTIO = 0x3832
_BELOW_2_GIB = 1 << 31
_PROGRAM = 64
_MOST = 4096 - _PROGRAM


class CcwCommand(enum.IntEnum):
    """Commands of a virtio device (4.3.1)."""

    WRITE_FEATURES = 0x11
    READ_FEATURES = 0x12
    READ_CONFIGURATION = 0x22
    RESET = 0x33
    READ_STATUS = 0x72
    SET_REVISION = 0x83


class VirtioCcw(DriverBase):
    """Ask a virtio device behind a subchannel what it is and how it is set up.

    Lifetime:
        See `DriverBase`. Probing agrees on a revision and resets the device; removing resets it. The device keeps the
        revision until it is closed, and refuses to agree on one again.
    Locking:
        One call at a time.
    """

    identity: SenseId
    """What it says that it is; ``control_unit_model`` is the kind of virtio device."""
    revision: int
    """Revision of the transport."""

    def __init__(self, ccw: CcwDevice, revision: int = 1) -> None:
        """Take a device, which is not touched yet.

        Args:
            ccw: the device.
            revision: of the transport: 0 is legacy (the configuration is big-endian), 1 is virtio 1 (little-endian, as
                soon as `accept` has had ``VERSION_1``).
        """
        super().__init__(ccw)
        self.ccw = ccw
        """The device that it drives."""
        self.revision = revision

    _memory: DmaBuffer

    def probe(self) -> None:
        """Check what it is, set the revision, reset it.

        Raises:
            VirtioUnsupportedError: it is no virtio device.
            ChannelProgramError: it refuses the revision, or has agreed on one since it was opened (command reject).
        """
        self.identity = self.ccw.sense_id()
        if self.identity.control_unit != _VIRTIO:
            raise VirtioUnsupportedError(
                f"{self.ccw.name} is no virtio device: its control unit is {self.identity.control_unit:#06x}"
            )
        self._memory = self.ccw.dma_alloc(4096, iova_limit=_BELOW_2_GIB)
        try:
            # The first of all commands (4.3.2.1): a device that was given another has settled for revision 0.
            self._run(CcwCommand.SET_REVISION, struct.pack(">HH", self.revision, 0), 4)
            self._run(CcwCommand.RESET, b"", 0)
        except BaseException:
            self._memory.close()
            raise

    def remove(self) -> None:
        """Reset the device."""
        try:
            self._run(CcwCommand.RESET, b"", 0)
        finally:
            self._memory.close()

    @property
    def features(self) -> int:
        """What it offers, 64 bits."""
        found = 0
        for half in range(2):
            data = self._run(CcwCommand.READ_FEATURES, struct.pack("<IB", 0, half), 5)
            found |= int(struct.unpack_from("<I", data)[0]) << 32 * half
        return found

    def accept(self, features: int) -> None:
        """Tell the device which of the features that it offers are used, 64 bits.

        Raises:
            ChannelProgramError: it refuses.
        """
        for half in range(2):
            word = features >> 32 * half & 0xFFFFFFFF
            self._run(CcwCommand.WRITE_FEATURES, struct.pack("<IB", word, half), 5)

    @property
    def status(self) -> int:
        """Device status (2.1)."""
        return self._run(CcwCommand.READ_STATUS, b"", 1)[0]

    def configuration(self, size: int) -> bytes:
        """Read the first bytes of its configuration; fewer when it has no more.

        Raises:
            BoundsError: more than fits.
        """
        return self._run(CcwCommand.READ_CONFIGURATION, b"", size)

    def _run(self, command: CcwCommand, data: bytes, count: int) -> bytes:
        if not 0 <= count <= _MOST:
            raise BoundsError(f"{count} bytes: one command moves 0 to {_MOST}")
        room = self._memory[_PROGRAM:]
        room.view[: max(count, len(data))] = data.ljust(count, b"\0")
        program = ChannelProgram().command(command, room.iova, count, flags=CcwFlag.SUPPRESS_LENGTH)
        irb = self.ccw.run(program, self._memory[:_PROGRAM])
        return bytes(room.view[: count - irb.scsw.count])

"""What the controller registers of NVMe mean (NVMe Base 2.0, 3.1.3); registers.py declares them.

Everything here is pure: an integer that was read goes in, a frozen value comes out.
"""

from __future__ import annotations

from dataclasses import dataclass

from vfio_user.drivers.nvme.registers import (
    AdminQueueSizes,
    CapabilitiesRegister,
    ConfigurationRegister,
    ShutdownStatus,
    StatusRegister,
    VersionRegister,
)
from vfio_user.errors import BoundsError

__all__ = [
    "ALL_ONES32",
    "ALL_ONES64",
    "DOORBELLS",
    "Capabilities",
    "ControllerStatus",
    "Version",
    "admin_queue_attributes",
    "configuration",
    "doorbell_offset",
]

DOORBELLS = 0x1000
"""First doorbell (NVMe over PCIe 1.0, 3.1.2.1)."""

ALL_ONES32 = 0xFFFF_FFFF
"""What a 32-bit register reads as when nothing answers on the bus."""
ALL_ONES64 = 0xFFFF_FFFF_FFFF_FFFF
"""What a 64-bit register reads as when nothing answers on the bus."""

_SQ_ENTRY_SHIFT = 6  # 64-byte commands
_CQ_ENTRY_SHIFT = 4  # 16-byte completions
_COMMAND_SET_NVM = 0
_COMMAND_SET_ALL = 0b110
_COMMAND_SET_ADMIN_ONLY = 0b111


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the controller can do: register CAP (NVMe Base 2.0, 3.1.3.1)."""

    max_queue_entries: int
    """Largest size of an I/O queue, in entries: CAP.MQES + 1."""
    contiguous_queues_required: bool
    """Queues must be physically contiguous (CAP.CQR); ours always are, in IOVA space."""
    timeout: float
    """Longest time that CSTS.RDY takes to follow CC.EN, in seconds: CAP.TO in units of 0.5 s."""
    doorbell_stride: int
    """Bytes from one doorbell to the next: 4 << CAP.DSTRD."""
    subsystem_reset: bool
    """The register NSSR exists (CAP.NSSRS)."""
    command_sets: int
    """CAP.CSS: bit 0 NVM command set, bit 6 one or more I/O command sets, bit 7 none."""
    min_page_size: int
    """Smallest memory page that CC.MPS can select, in bytes."""
    max_page_size: int
    """Largest memory page that CC.MPS can select, in bytes."""

    @classmethod
    def from_int(cls, value: int) -> Capabilities:
        """Decode the 64 bits of CAP."""
        cap = CapabilitiesRegister(value)
        return cls(
            max_queue_entries=cap.mqes + 1,
            contiguous_queues_required=bool(cap.cqr),
            timeout=cap.to * 0.5,
            doorbell_stride=4 << cap.dstrd,
            subsystem_reset=bool(cap.nssrs),
            command_sets=cap.css,
            min_page_size=4096 << cap.mpsmin,
            max_page_size=4096 << cap.mpsmax,
        )

    @property
    def command_set_selection(self) -> int | None:
        """What CC.CSS must hold so that the NVM command set works; `None` when it can't."""
        if self.command_sets & 1 << 6:
            return _COMMAND_SET_ALL
        if self.command_sets & 1:
            return _COMMAND_SET_NVM
        return _COMMAND_SET_ADMIN_ONLY if self.command_sets & 1 << 7 else None

    @property
    def has_nvm_command_set(self) -> bool:
        """Tell whether I/O queues can carry NVM commands."""
        return self.command_set_selection in (_COMMAND_SET_NVM, _COMMAND_SET_ALL)


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """A version of the specification: register VS, or VER of Identify Controller (NVMe Base 2.0, 3.1.3.2).

    Versions compare: ``Version.from_int(vs) >= Version(1, 3)``.
    """

    major: int
    """Major version."""
    minor: int
    """Minor version."""
    tertiary: int = 0
    """Tertiary version."""

    @classmethod
    def from_int(cls, value: int) -> Version:
        """Decode 32 bits: major 31:16, minor 15:8, tertiary 7:0."""
        version = VersionRegister(value)
        return cls(version.mjr, version.mnr, version.ter)

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.tertiary}"


@dataclass(frozen=True, slots=True)
class ControllerStatus:
    """What the controller says of itself: register CSTS (NVMe Base 2.0, 3.1.3.6)."""

    ready: bool
    """CSTS.RDY: commands are processed."""
    fatal: bool
    """CSTS.CFS: a fatal error that only a reset ends."""
    shutdown_in_progress: bool
    """CSTS.SHST is 01b."""
    shutdown_complete: bool
    """CSTS.SHST is 10b."""
    processing_paused: bool
    """CSTS.PP: processing is paused."""
    gone: bool
    """The register read as all-ones: there is no device behind the address any more."""

    @classmethod
    def from_int(cls, value: int) -> ControllerStatus:
        """Decode the 32 bits of CSTS; all-ones gives ``gone`` and nothing else."""
        if value == ALL_ONES32:
            return cls(False, False, False, False, False, gone=True)
        status = StatusRegister(value)
        shutdown = StatusRegister.shst.number(value)  # 11b, which is reserved, is neither
        return cls(
            ready=status.rdy,
            fatal=status.cfs,
            shutdown_in_progress=shutdown == ShutdownStatus.UNDER_WAY,
            shutdown_complete=shutdown == ShutdownStatus.COMPLETE,
            processing_paused=status.pp,
            gone=False,
        )


def configuration(page_size: int, command_set: int) -> int:
    """Compose CC for an enabled controller: entry sizes of 64 and 16 bytes, round robin (3.1.3.5).

    Args:
        page_size: memory page size in bytes, a power of two from 4096 on.
        command_set: `Capabilities.command_set_selection`.
    """
    page_shift = page_size.bit_length() - 1
    return ConfigurationRegister.compose(
        en=1, css=command_set, mps=page_shift - 12, iosqes=_SQ_ENTRY_SHIFT, iocqes=_CQ_ENTRY_SHIFT
    )


def admin_queue_attributes(entries: int) -> int:
    """Compose AQA for admin queues of ``entries`` entries each, 2 to 4096.

    Raises:
        BoundsError: the number of entries is outside of what AQA can hold (NVMe Base 2.0, 3.1.3.8).
    """
    if not 2 <= entries <= 4096:
        raise BoundsError(f"an admin queue of {entries} entries can't be: choose 2 to 4096")
    return AdminQueueSizes.compose(asqs=entries - 1, acqs=entries - 1)


def doorbell_offset(qid: int, *, completion: bool, stride: int) -> int:
    """Tell where in BAR 0 the doorbell of a queue is (NVMe over PCIe 1.0, 3.1.2.1 and 3.1.2.2).

    Args:
        qid: queue id, 0 to 65535; 0 is the admin queue.
        completion: the completion queue's head doorbell, else the submission queue's tail doorbell.
        stride: `Capabilities.doorbell_stride`, bytes.
    """
    return DOORBELLS + (2 * qid + completion) * stride

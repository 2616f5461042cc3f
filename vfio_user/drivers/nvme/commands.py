"""Commands and completions as they lie in the queues, and the builders of the commands that the driver sends.

Pure: numbers in, numbers out. Section numbers are those of NVMe Base 2.0, or of the NVM Command Set 1.0
where "NVM" stands before them. A builder's ``prp1`` and ``prp2`` are IOVAs as `prp.prp_fields` gives them.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from vfio_user.drivers.nvme.opcodes import AdminOpcode, IoOpcode
from vfio_user.drivers.nvme.status import Status
from vfio_user.errors import ArgumentError, BoundsError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "CQE_SIZE",
    "SQE_SIZE",
    "Completion",
    "SubmissionEntry",
    "abort",
    "create_completion_queue",
    "create_submission_queue",
    "dataset_ranges",
    "deallocate",
    "delete_completion_queue",
    "delete_submission_queue",
    "flush",
    "get_features",
    "get_log_page",
    "identify",
    "read",
    "set_features",
    "write",
    "write_zeroes",
]

SQE_SIZE = 64
"""Bytes of a submission queue entry."""
CQE_SIZE = 16
"""Bytes of a completion queue entry."""

_SQE = struct.Struct("<BBHIIIQQQ6I")
_CQE = struct.Struct("<IIHHHH")
_RANGE = struct.Struct("<IIQ")

_MAX_BLOCKS = 1 << 16
_MAX_RANGES = 256
_PHYSICALLY_CONTIGUOUS = 1 << 0
_INTERRUPTS_ENABLED = 1 << 1
_DEALLOCATE = 1 << 2  # NVM 3.2.3, attribute AD
_WRITE_ZEROES_DEALLOCATE = 1 << 25  # NVM 3.2.8, DEAC
_FORCE_UNIT_ACCESS = 1 << 30


class SubmissionEntry(NamedTuple):
    """A command, in the order of its 64 bytes (3.3.3.1).

    ``command_id`` is filled in by the queue. All values are unsigned; ``mptr``, ``prp1`` and
    ``prp2`` are IOVAs.
    """

    opcode: int
    """Opcode, 8 bits."""
    flags: int = 0
    """Bits 15:8 of dword 0: FUSE and PSDT; 0 is a single command that uses PRPs."""
    command_id: int = 0
    """Command identifier, 16 bits."""
    nsid: int = 0
    """Namespace id; 0 where none is meant, 0xffffffff for all."""
    cdw2: int = 0
    """Command dword 2."""
    cdw3: int = 0
    """Command dword 3."""
    mptr: int = 0
    """Metadata pointer."""
    prp1: int = 0
    """PRP entry 1."""
    prp2: int = 0
    """PRP entry 2, or IOVA of the PRP list."""
    cdw10: int = 0
    """Command dword 10."""
    cdw11: int = 0
    """Command dword 11."""
    cdw12: int = 0
    """Command dword 12."""
    cdw13: int = 0
    """Command dword 13."""
    cdw14: int = 0
    """Command dword 14."""
    cdw15: int = 0
    """Command dword 15."""

    def pack(self) -> bytes:
        """Return the 64 bytes.

        Raises:
            BoundsError: a field does not fit its width.
        """
        try:
            return _SQE.pack(*self)
        except struct.error as exc:
            raise BoundsError(f"{self}: {exc}") from exc

    @classmethod
    def unpack(cls, data: bytes | bytearray | memoryview) -> SubmissionEntry:
        """Read the 64 bytes of an entry."""
        return cls(*_SQE.unpack(data))


class Completion(NamedTuple):
    """A completion queue entry (3.3.3.2)."""

    result: int
    """Dword 0: what the command returns."""
    result_high: int
    """Dword 1: command specific."""
    sq_head: int
    """Submission queue head pointer when the entry was written."""
    sqid: int
    """Submission queue that the command came from."""
    command_id: int
    """Identifier of the completed command."""
    phase_and_status: int
    """Bit 0 is the phase tag, bits 15:1 the status field."""

    @property
    def status(self) -> Status:
        """The status field, decoded."""
        return Status.from_int(self.phase_and_status >> 1)

    @property
    def ok(self) -> bool:
        """Tell whether the command succeeded."""
        return self.phase_and_status & 0x0FFE == 0

    @classmethod
    def unpack_from(cls, data: bytes | bytearray | memoryview, offset: int = 0) -> Completion:
        """Read the 16 bytes of an entry at ``offset``."""
        return cls(*_CQE.unpack_from(data, offset))

    def pack(self) -> bytes:
        """Return the 16 bytes."""
        return _CQE.pack(*self)


def identify(cns: int, *, nsid: int = 0, prp1: int = 0) -> SubmissionEntry:
    """Build Identify (5.17); the answer has 4096 bytes."""
    return SubmissionEntry(AdminOpcode.IDENTIFY, nsid=nsid, prp1=prp1, cdw10=cns)


def set_features(feature: int, value: int, *, nsid: int = 0) -> SubmissionEntry:
    """Build Set Features for a feature that fits dword 11 (5.27)."""
    return SubmissionEntry(AdminOpcode.SET_FEATURES, nsid=nsid, cdw10=feature, cdw11=value)


def get_features(feature: int, *, nsid: int = 0, which: int = 0) -> SubmissionEntry:
    """Build Get Features for the current value of a feature that fits dword 0 (5.15).

    Args:
        feature: see `opcodes.FeatureId`.
        nsid: namespace, for features that each has.
        which: dword 11: of features that there are several of, such as one for each vector.
    """
    return SubmissionEntry(AdminOpcode.GET_FEATURES, nsid=nsid, cdw10=feature, cdw11=which)


def get_log_page(
    page: int, size: int, *, prp1: int = 0, prp2: int = 0, nsid: int = 0xFFFF_FFFF, offset: int = 0
) -> SubmissionEntry:
    """Build Get Log Page (5.16).

    Args:
        page: see `opcodes.LogPageId`.
        size: bytes, a multiple of 4.
        prp1: IOVA of the memory for the answer.
        prp2: second PRP entry, when the answer crosses a page.
        nsid: namespace; all of them by default.
        offset: where in the page to start, bytes, a multiple of 4.

    Raises:
        ArgumentError: size or offset is not a multiple of 4, or the size is not above 0.
    """
    if size <= 0 or size % 4 or offset % 4:
        raise ArgumentError(f"log page size {size} and offset {offset}: need multiples of 4 bytes, size above 0")
    dwords = size // 4 - 1
    return SubmissionEntry(
        AdminOpcode.GET_LOG_PAGE,
        nsid=nsid,
        prp1=prp1,
        prp2=prp2,
        cdw10=page | (dwords & 0xFFFF) << 16,
        cdw11=dwords >> 16,
        cdw12=offset & 0xFFFF_FFFF,
        cdw13=offset >> 32,
    )


def create_completion_queue(qid: int, entries: int, *, prp1: int, vector: int | None) -> SubmissionEntry:
    """Build Create I/O Completion Queue (5.4); without a vector the queue raises no interrupts."""
    flags = _PHYSICALLY_CONTIGUOUS
    if vector is not None:
        flags |= _INTERRUPTS_ENABLED | vector << 16
    return SubmissionEntry(AdminOpcode.CREATE_CQ, prp1=prp1, cdw10=qid | (entries - 1) << 16, cdw11=flags)


def create_submission_queue(qid: int, entries: int, *, prp1: int, cqid: int) -> SubmissionEntry:
    """Build Create I/O Submission Queue (5.5), completing to queue ``cqid``."""
    return SubmissionEntry(
        AdminOpcode.CREATE_SQ,
        prp1=prp1,
        cdw10=qid | (entries - 1) << 16,
        cdw11=_PHYSICALLY_CONTIGUOUS | cqid << 16,
    )


def delete_submission_queue(qid: int) -> SubmissionEntry:
    """Build Delete I/O Submission Queue (5.7)."""
    return SubmissionEntry(AdminOpcode.DELETE_SQ, cdw10=qid)


def delete_completion_queue(qid: int) -> SubmissionEntry:
    """Build Delete I/O Completion Queue (5.6); its submission queues must be gone by then."""
    return SubmissionEntry(AdminOpcode.DELETE_CQ, cdw10=qid)


def abort(sqid: int, command_id: int) -> SubmissionEntry:
    """Build Abort (5.1); bit 0 of the result is 0 when the command was aborted."""
    return SubmissionEntry(AdminOpcode.ABORT, cdw10=sqid | command_id << 16)


def read(nsid: int, lba: int, num_blocks: int, *, prp1: int = 0, prp2: int = 0) -> SubmissionEntry:
    """Build Read (NVM 3.2.4) of 1 to 65536 blocks."""
    return _transfer(IoOpcode.READ, nsid, lba, num_blocks, prp1, prp2, 0)


def write(
    nsid: int, lba: int, num_blocks: int, *, prp1: int = 0, prp2: int = 0, force_unit_access: bool = False
) -> SubmissionEntry:
    """Build Write (NVM 3.2.6) of 1 to 65536 blocks; ``force_unit_access`` goes past the write cache."""
    return _transfer(IoOpcode.WRITE, nsid, lba, num_blocks, prp1, prp2, _FORCE_UNIT_ACCESS if force_unit_access else 0)


def write_zeroes(nsid: int, lba: int, num_blocks: int, *, deallocate: bool = False) -> SubmissionEntry:
    """Build Write Zeroes (NVM 3.2.8) of 1 to 65536 blocks; ``deallocate`` permits to free them instead."""
    flags = _WRITE_ZEROES_DEALLOCATE if deallocate else 0
    return _transfer(IoOpcode.WRITE_ZEROES, nsid, lba, num_blocks, 0, 0, flags)


def flush(nsid: int) -> SubmissionEntry:
    """Build Flush (7.1)."""
    return SubmissionEntry(IoOpcode.FLUSH, nsid=nsid)


def deallocate(nsid: int, num_ranges: int, *, prp1: int = 0) -> SubmissionEntry:
    """Build Dataset Management with the attribute Deallocate (NVM 3.2.3) for 1 to 256 `dataset_ranges`.

    Raises:
        BoundsError: fewer or more.
    """
    if not 1 <= num_ranges <= _MAX_RANGES:
        raise BoundsError(f"{num_ranges} ranges: Dataset Management takes 1 to {_MAX_RANGES} at a time")
    return SubmissionEntry(IoOpcode.DATASET_MANAGEMENT, nsid=nsid, prp1=prp1, cdw10=num_ranges - 1, cdw11=_DEALLOCATE)


def dataset_ranges(ranges: Iterable[tuple[int, int]]) -> bytes:
    """Lay out ``(lba, num_blocks)`` pairs as Dataset Management wants them, 16 bytes each (NVM 3.2.3.1).

    Raises:
        BoundsError: an LBA does not fit 64 bits, or a length 32.
    """
    try:
        return b"".join(_RANGE.pack(0, num_blocks, lba) for lba, num_blocks in ranges)
    except struct.error as exc:
        raise BoundsError(f"a range does not fit 64 bits of LBA and 32 of length: {exc}") from exc


def _transfer(opcode: int, nsid: int, lba: int, num_blocks: int, prp1: int, prp2: int, flags: int) -> SubmissionEntry:
    if not 1 <= num_blocks <= _MAX_BLOCKS:
        raise BoundsError(f"{num_blocks} blocks in one command: it takes 1 to {_MAX_BLOCKS}")
    return SubmissionEntry(
        opcode,
        nsid=nsid,
        prp1=prp1,
        prp2=prp2,
        cdw10=lba & 0xFFFF_FFFF,
        cdw11=lba >> 32,
        cdw12=num_blocks - 1 | flags,
    )

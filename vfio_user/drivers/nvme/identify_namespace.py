"""What Identify says of namespaces (NVMe Base 2.0, 5.17.2; NVM Command Set 1.0, 4.1.5), as frozen values.

The attributes have readable names; the specification's abbreviation stands in each field's description.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Annotated

from vfio_user.drivers.nvme.layout import IDENTIFY_SIZE, At, parse, whole_page
from vfio_user.errors import MalformedReplyError

__all__ = ["IdentifyNamespace", "LbaFormat", "NamespaceDescriptors", "parse_namespace_list"]

_LBA_FORMATS = 128
_MAX_FORMATS = 64


@dataclass(frozen=True, slots=True)
class LbaFormat:
    """A way to format a namespace (NVM Command Set 1.0, figure "LBA Format Data Structure")."""

    metadata_size: int
    """Bytes of metadata for each block (MS)."""
    data_shift: int
    """Size of a block, a power of two (LBADS)."""
    relative_performance: int
    """0 best to 3 degraded (RP)."""

    @classmethod
    def from_int(cls, value: int) -> LbaFormat:
        """Decode the 32 bits of the structure."""
        return cls(value & 0xFFFF, value >> 16 & 0xFF, value >> 24 & 0b11)

    @property
    def block_size(self) -> int:
        """Bytes of data in a block; 0 when the format is not available."""
        return 1 << self.data_shift if self.data_shift else 0


@dataclass(frozen=True, slots=True)
class IdentifyNamespace:
    """Identify Namespace, CNS 00h (NVM Command Set 1.0, 4.1.5.1)."""

    num_blocks: Annotated[int, At(0, 8)]
    """Size of the namespace, blocks (NSZE)."""
    capacity_blocks: Annotated[int, At(8, 8)]
    """Most blocks that may be allocated at once (NCAP)."""
    used_blocks: Annotated[int, At(16, 8)]
    """Blocks allocated now (NUSE)."""
    features: Annotated[int, At(24, 1)]
    """Namespace features (NSFEAT): bit 0 thin provisioning, bit 2 deallocated blocks report an error."""
    num_formats_raw: Annotated[int, At(25, 1)]
    """Number of LBA formats, minus one (NLBAF)."""
    formatted_size: Annotated[int, At(26, 1)]
    """Formatted LBA size (FLBAS): the format in use, and bit 4 metadata interleaved."""
    metadata_capabilities: Annotated[int, At(27, 1)]
    """Metadata capabilities (MC)."""
    protection_capabilities: Annotated[int, At(28, 1)]
    """End-to-end data protection capabilities (DPC)."""
    protection_settings: Annotated[int, At(29, 1)]
    """End-to-end data protection type settings (DPS): bits 2:0 the type in use, 0 none."""
    multi_path: Annotated[int, At(30, 1)]
    """Namespace sharing capabilities (NMIC)."""
    reservations: Annotated[int, At(31, 1)]
    """Reservation capabilities (RESCAP)."""
    deallocate_features: Annotated[int, At(33, 1)]
    """Deallocate logical block features (DLFEAT): bits 2:0 is 1 when deallocated blocks read as zeroes."""
    capacity_bytes: Annotated[int, At(48, 16)]
    """NVM capacity, bytes (NVMCAP); 0 when not reported."""
    preferred_granularity_raw: Annotated[int, At(64, 2)]
    """Preferred write granularity, blocks, minus one (NPWG)."""
    namespace_attributes: Annotated[int, At(99, 1)]
    """Namespace attributes (NSATTR): bit 0 write protected."""
    nguid: Annotated[bytes, At(104, 16)]
    """Namespace globally unique id (NGUID); zeroes when there is none."""
    eui64: Annotated[bytes, At(120, 8)]
    """IEEE extended unique id (EUI64); zeroes when there is none."""
    formats: tuple[LbaFormat, ...] = field(repr=False)
    """LBA formats that the namespace supports."""

    @classmethod
    def parse(cls, data: bytes | bytearray | memoryview) -> IdentifyNamespace:
        """Read the 4096 bytes that Identify with CNS 00h returns.

        Raises:
            MalformedReplyError: fewer bytes, or more LBA formats than there is room for.
        """
        raw = whole_page(cls.__name__, data)
        count = raw[25] + 1
        if count > _MAX_FORMATS:
            raise MalformedReplyError(f"Identify Namespace claims {count} LBA formats, 64 at most can be")
        words = (raw[_LBA_FORMATS + 4 * i :][:4] for i in range(count))
        return parse(cls, raw, formats=tuple(LbaFormat.from_int(int.from_bytes(w, "little")) for w in words))

    @property
    def format(self) -> LbaFormat:
        """The LBA format in use.

        Raises:
            MalformedReplyError: FLBAS names a format that does not exist, or blocks of an impossible size.
        """
        # FLBAS bits 6:5 extend the index only where there are more than 16 formats.
        index = self.formatted_size & 0xF
        if len(self.formats) > 16:
            index |= (self.formatted_size >> 5 & 0b11) << 4
        if index >= len(self.formats):
            raise MalformedReplyError(f"namespace uses LBA format {index}, it has {len(self.formats)}")
        chosen = self.formats[index]
        if not 9 <= chosen.data_shift <= 31:
            raise MalformedReplyError(f"LBA format {index} has blocks of 2^{chosen.data_shift} bytes, not 2^9 to 2^31")
        return chosen

    @property
    def block_size(self) -> int:
        """Bytes of data in a block."""
        return self.format.block_size

    @property
    def interleaved_metadata(self) -> bool:
        """Tell whether metadata travels with the data of each block (FLBAS bit 4)."""
        return bool(self.formatted_size & 1 << 4) and self.format.metadata_size > 0

    @property
    def write_protected(self) -> bool:
        """Tell whether the namespace is write protected now."""
        return bool(self.namespace_attributes & 1)


@dataclass(frozen=True, slots=True)
class NamespaceDescriptors:
    """Namespace Identification Descriptor list, CNS 03h (NVMe Base 2.0, 5.17.2.3)."""

    eui64: bytes | None
    """Type 1, 8 bytes."""
    nguid: bytes | None
    """Type 2, 16 bytes."""
    uuid: uuid.UUID | None
    """Type 3."""
    command_set: int | None
    """Type 4, the command set identifier: 0 is the NVM command set."""

    @classmethod
    def parse(cls, data: bytes | bytearray | memoryview) -> NamespaceDescriptors:
        """Read the list; it ends with a descriptor of length 0, unknown types are skipped.

        Raises:
            MalformedReplyError: a descriptor reaches beyond the list, or has the wrong length for its type.
        """
        raw = whole_page(cls.__name__, data)
        lengths = {1: 8, 2: 16, 3: 16, 4: 1}
        found: dict[int, bytes] = {}
        offset = 0
        while offset + 4 <= len(raw) and raw[offset + 1]:
            kind, length = raw[offset], raw[offset + 1]
            value = raw[offset + 4 : offset + 4 + length]
            if len(value) != length or lengths.get(kind, length) != length:
                raise MalformedReplyError(f"namespace descriptor of type {kind} at byte {offset}: length {length}")
            found.setdefault(kind, value)
            offset += 4 + length
        return cls(
            eui64=found.get(1),
            nguid=found.get(2),
            uuid=uuid.UUID(bytes=found[3]) if 3 in found else None,
            command_set=found[4][0] if 4 in found else None,
        )


def parse_namespace_list(data: bytes | bytearray | memoryview) -> list[int]:
    """Read an Active Namespace ID list, CNS 02h (NVMe Base 2.0, 5.17.2.2): up to 1024 ids, ascending.

    Raises:
        MalformedReplyError: the ids do not ascend, so that asking for the next ones might never end.
    """
    raw = whole_page("Active Namespace ID list", data)
    ids: list[int] = []
    for offset in range(0, IDENTIFY_SIZE, 4):
        nsid = int.from_bytes(raw[offset : offset + 4], "little")
        if nsid == 0:
            break
        if ids and nsid <= ids[-1]:
            raise MalformedReplyError(f"Active Namespace ID list does not ascend: {nsid} after {ids[-1]}")
        ids.append(nsid)
    return ids

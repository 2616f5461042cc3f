"""What the IOMMU hardware behind a device is."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from vfio_user._uapi import ffi, lib
from vfio_user.errors import MalformedReplyError
from vfio_user.iommu.iommufd.command import address, command
from vfio_user.kernel.fd import OwnedFd
from vfio_user.kernel.ioctl import MAX_REPLY, requests
from vfio_user.kernel.uapi import HwCapabilities, HwInfoType

__all__ = ["AmdInfo", "ArmSmmuv3Info", "HwInfo", "Tegra241CmdqvInfo", "VtdInfo", "read_hw_info"]

_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class VtdInfo:
    """Registers of an Intel VT-d unit."""

    errata: int
    """Bits of ``enum iommu_hw_info_vtd_flags``."""
    capability: int
    """Capability register (VT-d specification, 11.4.2)."""
    extended_capability: int
    """Extended capability register (11.4.3)."""


@dataclass(frozen=True, slots=True)
class ArmSmmuv3Info:
    """Registers of an Arm SMMUv3."""

    errata: int
    """Bits of ``enum iommu_hw_info_arm_smmuv3_flags``."""
    idr: tuple[int, ...]
    """Identification registers 0 to 5."""
    iidr: int
    """Implementation identification register."""
    aidr: int
    """Architecture identification register."""


@dataclass(frozen=True, slots=True)
class Tegra241CmdqvInfo:
    """NVIDIA's command queues on an SMMUv3."""

    version: int
    """Version of the hardware."""
    log2_queues: int
    """Logarithm of the number of queues that one virtual interface may have."""
    log2_stream_ids: int
    """Logarithm of the number of stream ids that one virtual interface may have."""


@dataclass(frozen=True, slots=True)
class AmdInfo:
    """Registers of an AMD IOMMU."""

    extended_features: int
    """Extended feature register (AMD I/O Virtualization Technology specification, MMIO offset 0030h)."""
    extended_features_2: int
    """Second one (MMIO offset 01A0h)."""


@dataclass(frozen=True, slots=True)
class HwInfo:
    """Reply of ``IOMMU_GET_HW_INFO``."""

    kind: int
    """What the data describe; `HwInfoType` has the names."""
    capabilities: HwCapabilities
    """What it can do, whatever its kind."""
    max_pasid_log2: int
    """Logarithm of the number of PASIDs that the device may use; 0 when it can't use any."""
    data: VtdInfo | ArmSmmuv3Info | Tegra241CmdqvInfo | AmdInfo | None
    """Its registers; `None` when the kernel tells none, or of a kind that is unknown here."""
    raw: bytes
    """The same, not decoded."""


def read_hw_info(fd: OwnedFd, device_id: int, kind: HwInfoType | None) -> HwInfo:
    """Ask ``IOMMU_GET_HW_INFO``; see `Iommufd.hw_info`."""
    size = 64
    for _ in range(_ROUNDS):
        buffer = ffi.new("uint8_t[]", size)
        reply = command(
            fd,
            requests.IOMMU_GET_HW_INFO,
            "struct iommu_hw_info",
            flags=0 if kind is None else lib.IOMMU_HW_INFO_FLAG_INPUT_TYPE,
            dev_id=device_id,
            data_len=size,
            data_uptr=address(buffer),
            in_data_type=0 if kind is None else kind,
        )
        length = int(reply.data_len)
        if length > MAX_REPLY:
            raise MalformedReplyError(f"IOMMU_GET_HW_INFO of device {device_id} would have {length} bytes")
        if length <= size:
            break
        size = length
    else:
        raise MalformedReplyError(f"IOMMU_GET_HW_INFO of device {device_id} still grows, at {length} bytes")
    raw = bytes(ffi.buffer(buffer, length))
    found = int(reply.out_data_type)
    decode = _DECODERS.get(found)
    return HwInfo(
        found,
        HwCapabilities(reply.out_capabilities),
        int(reply.out_max_pasid_log2),
        decode(raw) if decode else None,
        raw,
    )


def _fields(form: struct.Struct, raw: bytes) -> tuple[int, ...]:
    # A kernel that is older than the structure gives less of it, a newer one more.
    return form.unpack(raw[: form.size].ljust(form.size, b"\0"))


def _vtd(raw: bytes) -> VtdInfo:
    return VtdInfo(*_fields(struct.Struct("=I4xQQ"), raw))


def _arm(raw: bytes) -> ArmSmmuv3Info:
    errata, *registers = _fields(struct.Struct("=I4x8I"), raw)
    return ArmSmmuv3Info(errata, tuple(registers[:6]), registers[6], registers[7])


def _cmdqv(raw: bytes) -> Tegra241CmdqvInfo:
    return Tegra241CmdqvInfo(*_fields(struct.Struct("=4xBBBx"), raw))


def _amd(raw: bytes) -> AmdInfo:
    return AmdInfo(*_fields(struct.Struct("=QQ"), raw))


_DECODERS: dict[int, Callable[[bytes], VtdInfo | ArmSmmuv3Info | Tegra241CmdqvInfo | AmdInfo]] = {
    HwInfoType.INTEL_VTD: _vtd,
    HwInfoType.ARM_SMMUV3: _arm,
    HwInfoType.TEGRA241_CMDQV: _cmdqv,
    HwInfoType.AMD: _amd,
}

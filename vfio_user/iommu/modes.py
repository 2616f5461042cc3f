"""The IOMMU back ends, as data."""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass

from vfio_user._uapi import lib
from vfio_user.errors import ArgumentError

__all__ = ["IommuMode", "available_modes"]


@dataclass(frozen=True, slots=True)
class _Row:
    node: str
    iommu_type: int | None


class IommuMode(enum.Enum):
    """How an address space talks to the IOMMU."""

    TYPE1 = "type1"
    """VFIO container, type1: the oldest; part of a mapping can be unmapped."""
    TYPE1V2 = "type1v2"
    """VFIO container, type1v2: mappings are unmapped whole."""
    NOIOMMU = "noiommu"
    """No translation and no protection: the device reaches all memory. Only when asked for by keyword."""

    @property
    def node(self) -> str:
        """The character device that it is opened through."""
        return _ROWS[self].node

    @property
    def iommu_type(self) -> int | None:
        """Argument of ``VFIO_SET_IOMMU``; `None` where there is no such call."""
        return _ROWS[self].iommu_type

    @classmethod
    def parse(cls, mode: IommuMode | str) -> IommuMode:
        """Read a mode from its name.

        Raises:
            ArgumentError: no such mode; the message lists them.
        """
        try:
            return cls(mode)
        except ValueError:
            names = ", ".join(each.value for each in cls)
            raise ArgumentError(f"{mode!r} is not an IOMMU mode; there are: {names}") from None


_ROWS = {
    IommuMode.TYPE1: _Row("/dev/vfio/vfio", lib.VFIO_TYPE1_IOMMU),
    IommuMode.TYPE1V2: _Row("/dev/vfio/vfio", lib.VFIO_TYPE1v2_IOMMU),
    IommuMode.NOIOMMU: _Row("/dev/vfio/vfio", lib.VFIO_NOIOMMU_IOMMU),
}


def available_modes() -> tuple[IommuMode, ...]:
    """Give the modes whose nodes this machine has, best first; `IommuMode.NOIOMMU` is never among them."""
    order = (IommuMode.TYPE1V2, IommuMode.TYPE1)
    return tuple(mode for mode in order if os.path.exists(mode.node))

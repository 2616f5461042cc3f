"""The IOMMU back ends, as data."""

from __future__ import annotations

import enum
import os
from collections.abc import Iterable
from dataclasses import dataclass

from vfio_user._uapi import lib
from vfio_user.errors import ArgumentError
from vfio_user.kernel.sysfs import CDEVS, VfioNode

__all__ = ["IommuMode", "available_modes", "best_mode", "common_mode"]

_CONTAINER, _IOMMUFD = "/dev/vfio/vfio", "/dev/iommu"


@dataclass(frozen=True, slots=True)
class _Row:
    node: str
    iommu_type: int | None
    translates: bool = True


class IommuMode(enum.Enum):
    """How an address space talks to the IOMMU."""

    TYPE1 = "type1"
    """VFIO container, type1: the oldest; part of a mapping can be unmapped."""
    TYPE1V2 = "type1v2"
    """VFIO container, type1v2: mappings are unmapped whole."""
    COMPAT_TYPE1 = "compat-type1"
    """iommufd's stand-in for a container (``/dev/iommu`` with the requests of ``/dev/vfio/vfio``), type1."""
    COMPAT_TYPE1V2 = "compat-type1v2"
    """The same, type1v2."""
    IOMMUFD = "iommufd"
    """iommufd and the device's own node; no group is opened."""
    NOIOMMU = "noiommu"
    """A group without an IOMMU: no translation and no protection, the device reaches all memory. Only when asked for by
    keyword. Addresses are read from ``/proc/self/pagemap``."""
    NOIOMMU_IOMMUFD = "noiommu-iommufd"
    """The same through iommufd and the device's own node (Linux 7.3): the kernel pins the memory and tells where it
    is."""

    @property
    def node(self) -> str:
        """The character device that it is opened through."""
        return _ROWS[self].node

    @property
    def iommu_type(self) -> int | None:
        """Argument of ``VFIO_SET_IOMMU``; `None` where there is no such call."""
        return _ROWS[self].iommu_type

    @property
    def translates(self) -> bool:
        """Tell whether an IOMMU stands between devices and memory."""
        return _ROWS[self].translates

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
    IommuMode.TYPE1: _Row(_CONTAINER, lib.VFIO_TYPE1_IOMMU),
    IommuMode.TYPE1V2: _Row(_CONTAINER, lib.VFIO_TYPE1v2_IOMMU),
    IommuMode.COMPAT_TYPE1: _Row(_IOMMUFD, lib.VFIO_TYPE1_IOMMU),
    IommuMode.COMPAT_TYPE1V2: _Row(_IOMMUFD, lib.VFIO_TYPE1v2_IOMMU),
    IommuMode.IOMMUFD: _Row(_IOMMUFD, None),
    IommuMode.NOIOMMU: _Row(_CONTAINER, lib.VFIO_NOIOMMU_IOMMU, translates=False),
    IommuMode.NOIOMMU_IOMMUFD: _Row(_IOMMUFD, None, translates=False),
}


def available_modes() -> tuple[IommuMode, ...]:
    """Give the modes whose nodes this machine has, best first; those without an IOMMU are never among them."""
    order = (
        IommuMode.IOMMUFD,
        IommuMode.TYPE1V2,
        IommuMode.COMPAT_TYPE1V2,
        IommuMode.TYPE1,
        IommuMode.COMPAT_TYPE1,
    )
    cdevs = os.path.isdir(CDEVS)
    return tuple(mode for mode in order if os.path.exists(mode.node) and (cdevs or mode is not IommuMode.IOMMUFD))


def best_mode(node: VfioNode | None = None) -> IommuMode:
    """Choose a mode, for a device if one is named: iommufd where it can be used, else a container.

    A device that has no IOMMU gets a mode without one, which nobody uses who has not asked for it.
    """
    cdev = os.path.isdir(CDEVS) if node is None else _accessible(node.cdev)
    if node is not None and node.noiommu:
        return IommuMode.NOIOMMU_IOMMUFD if cdev and _accessible(_IOMMUFD) else IommuMode.NOIOMMU
    if cdev and _accessible(_IOMMUFD):
        return IommuMode.IOMMUFD
    # Without any node the open of the usual one says best what is missing.
    return IommuMode.TYPE1V2 if os.path.exists(_CONTAINER) or not os.path.exists(_IOMMUFD) else IommuMode.COMPAT_TYPE1V2


def common_mode(nodes: Iterable[VfioNode]) -> IommuMode:
    """Choose one mode for several devices.

    Those of the devices differ where only some have a node of their own that this user may open.
    """
    modes = {best_mode(node) for node in nodes}
    return modes.pop() if len(modes) == 1 else IommuMode.TYPE1V2


def _accessible(path: str | None) -> bool:
    return path is not None and os.access(path, os.R_OK | os.W_OK)

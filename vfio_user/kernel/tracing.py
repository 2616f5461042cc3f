"""Where everything that can be traced reports to, while somebody traces.

Code that can be traced says ``if tracing.sink is not None: ...``, which costs some nanoseconds while it is `None`.
"""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING, Protocol

from vfio_user._uapi import ffi, lib

if TYPE_CHECKING:
    from vfio_user._uapi import CData

__all__ = ["Sink", "decode", "report_ioctl", "sink"]


class Sink(Protocol):
    """Takes what happens; times are of `time.monotonic_ns`. Any thread may call it."""

    def span(self, category: str, name: str, begin: int, end: int, arguments: dict[str, object]) -> None:
        """Take something that this thread did from ``begin`` to ``end``."""

    def instant(self, category: str, name: str, arguments: dict[str, object]) -> None:
        """Take something that happened now."""

    def counter(self, name: str, value: int) -> None:
        """Take the value that something has from now on."""


sink: Sink | None = None
"""Who takes it; `None` while nobody traces."""

#: What the members called ``flags`` mean, where one enumeration of `vfio_user.kernel.uapi` says it.
_FLAGS = {
    "struct vfio_device_info": "DeviceFlags",
    "struct vfio_region_info": "RegionFlags",
    "struct vfio_irq_info": "IrqFlags",
    "struct vfio_irq_set": "IrqSet",
    "struct vfio_group_status": "GroupFlags",
    "struct vfio_iommu_type1_info": "IommuInfoFlags",
    "struct vfio_iommu_type1_dma_map": "DmaMapFlags",
    "struct vfio_iommu_type1_dma_unmap": "DmaUnmapFlags",
    "struct iommu_ioas_map": "IoasMapFlags",
}
_IN_HEX = frozenset({"vaddr", "iova", "user_va", "offset", "size", "length", "iova_pgsizes", "last_iova", "cap_offset"})


def report_ioctl(begin: int, name: str, argument: CData, result: int, **more: object) -> None:
    """Report a request that was made, with what was asked and answered; a negative result is an errno."""
    if sink is None:
        return
    said = {"errno": errno.errorcode.get(-result, -result)} if result < 0 else {"result": result}
    arguments = {**{key: value for key, value in more.items() if value != ""}, **decode(argument), **said}
    sink.span("dma" if "MAP" in name else "ioctl", name, begin, time.monotonic_ns(), arguments)


def decode(pointer: CData) -> dict[str, object]:
    """Give the members of what a request points to; a number where it is no structure."""
    kind = ffi.typeof(pointer)
    if kind.kind != "pointer" or kind.item.kind != "struct":
        return {} if kind.kind != "pointer" or kind.item.kind != "void" else _number(pointer)
    found: dict[str, object] = {}
    for name, member in kind.item.fields:
        if not name or member.type.kind not in ("primitive", "enum"):
            continue
        value = getattr(pointer, name)
        if name == "flags":
            found[name] = _words(kind.item.cname, int(value))
        else:
            found[name] = hex(value) if name in _IN_HEX else int(value)
    return found


def _number(pointer: CData) -> dict[str, object]:
    value = int(ffi.cast("uintptr_t", pointer))
    return {"argument": value} if value else {}


def _words(ctype: str, flags: int) -> str:
    if ctype == "struct vfio_device_feature":
        return _feature(flags)
    if ctype not in _FLAGS:
        return hex(flags)
    from vfio_user.kernel import uapi  # when somebody traces only

    said = getattr(uapi, _FLAGS[ctype])(flags)
    return str(said.name or hex(flags)).lower()


def _feature(flags: int) -> str:
    from vfio_user.kernel import uapi

    number = flags & lib.VFIO_DEVICE_FEATURE_MASK
    try:
        name = uapi.DeviceFeature(number).name.lower()
    except ValueError:
        name = f"feature {number}"
    verbs = [each.name.lower() for each in uapi.FeatureOperation if flags & each and each.name]
    return " ".join([*verbs, name])

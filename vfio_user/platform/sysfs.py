"""Platform and AMBA devices as sysfs shows them: what the firmware says is soldered to the machine's own buses.

Source: ``Documentation/ABI/testing/sysfs-bus-platform``, ``drivers/amba/bus.c``.
"""

from __future__ import annotations

from vfio_user.kernel.busnode import BusNode

__all__ = ["AmbaNode", "PlatformNode"]


class _Described(BusNode):
    """A device that the firmware describes, mostly by a device tree."""

    @property
    def compatible(self) -> tuple[str, ...]:
        """What its node in the device tree says that it is, the closest first; empty without a device tree."""
        return tuple(part for part in (self.text("of_node/compatible") or "").split("\0") if part)


class PlatformNode(_Described):
    """One platform device as sysfs shows it: ``"a003e00.virtio_mmio"``.

    Lifetime:
        A value.
    Locking:
        None; every property is read when it is asked for.
    """

    on_bus = "platform"


class AmbaNode(_Described):
    """One AMBA device (Arm's PrimeCells) as sysfs shows it: ``"9010000.pl031"``.

    Lifetime:
        A value.
    Locking:
        None; every property is read when it is asked for.
    """

    on_bus = "amba"

    @property
    def peripheral_id(self) -> int | None:
        """Its peripheral id, 32 bits: part number, designer, revision; `None` when it can't be read."""
        try:
            return int(self.text("id") or "", 16)
        except ValueError:
            return None

"""Objects of NXP's management complex (fsl-mc): network interfaces, buffer pools, and the container that holds them.

Nobody has run this on hardware: there is no emulator of the bus. It is written to the kernel's uAPI and source, and
covered by unit tests only.

Source: ``drivers/vfio/fsl-mc/vfio_fsl_mc.c``.
"""

from __future__ import annotations

import dataclasses

from vfio_user.device.base import VfioDevice
from vfio_user.device.bus import BusDevice
from vfio_user.device.embed import Embedded
from vfio_user.device.ops import CORE_OPS, DeviceOps
from vfio_user.kernel.busnode import BusNode

__all__ = ["FSL_MC_OPS", "FslMcDevice", "FslMcNode"]

FSL_MC_OPS: DeviceOps = dataclasses.replace(CORE_OPS, name="vfio-fsl-mc")
"""The ops table of fsl-mc objects; a variant driver replaces single entries of it."""


class FslMcNode(BusNode):
    """One object of the management complex as sysfs shows it: ``"dpni.3"``, ``"dprc.2"``.

    Lifetime:
        A value.
    Locking:
        None; every property is read when it is asked for.
    """

    on_bus = "fsl-mc"

    @property
    def kind(self) -> str:
        """What it is: ``"dpni"`` a network interface, ``"dprc"`` a container, ..."""
        return self.identity.partition(".")[0]


class FslMcDevice(BusDevice[FslMcNode]):
    """An fsl-mc object opened through VFIO; `vfio_user.open_fsl_mc` makes one.

    Region 0 of a container is its command portal: commands are written there, and their answers read. Each interrupt is
    an edge.

    Lifetime:
        `close()`, or the ``with`` block. Closing twice does nothing.
    Locking:
        All methods may be called from any thread.
    """

    vdev = Embedded["FslMcDevice", VfioDevice]()
    """The bus-neutral device; ``container_of(vdev, FslMcDevice.vdev)`` leads back."""

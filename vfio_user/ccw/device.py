"""Channel devices: start channel programs on a subchannel, and hear what became of them."""

from __future__ import annotations

import dataclasses
import errno
import time

from vfio_user._uapi import ffi, lib
from vfio_user.ccw.program import CcwFlag, ChannelProgram, Command, Orb
from vfio_user.ccw.status import ChannelReport, Function, Irb, Schib, SenseId
from vfio_user.device.base import VfioDevice
from vfio_user.device.bus import BusDevice
from vfio_user.device.embed import Embedded
from vfio_user.device.ops import CORE_OPS, DeviceOps
from vfio_user.device.region import Region
from vfio_user.device.vector import IrqVector
from vfio_user.errors import ArgumentError, BoundsError, DeadlineError, UnsupportedError, VfioError, VfioOSError
from vfio_user.iommu import AddressSpace, DmaBuffer, DmaSlice
from vfio_user.kernel.fd import OwnedFd
from vfio_user.kernel.uapi import CcwIrq, CcwRegionSubtype, RegionType
from vfio_user.mdev.sysfs import Mdev

__all__ = ["CCW_OPS", "CcwDevice", "ChannelProgramError", "require_ccw"]

IOVA_LIMIT = 1 << 31
"""Channel programs, and data without indirect addresses, are below 2 GiB."""

_IRB_AT = lib.ORB_AREA_SIZE + lib.SCSW_AREA_SIZE
_START = Function.START << 12
_HINTS = {
    errno.EINVAL: "The program or its data is at an IOVA that is not mapped, or the program can't be read",
    errno.ENOENT: "The program or its data is at an IOVA that is not mapped",
    errno.EOPNOTSUPP: "vfio-ccw starts programs in command mode only",
    errno.EBUSY: "A program is under way",
    errno.EIO: "The device is gone, or not operational",
    errno.ENODEV: "The device is gone, or has no path",
    errno.EACCES: "No path of the mask is operational; or the address space is a container of type1, in which the "
    "kernel pins nothing for a device: open it with mode='type1v2' or 'iommufd'",
    errno.EAGAIN: "The subchannel is about to change",
}


class ChannelProgramError(VfioError):
    """Report a channel program that ended with anything but channel end and device end.

    Attributes:
        irb: what the subchannel said; ``irb.scsw.problems`` and ``irb.reasons`` have it by name.
    """

    def __init__(self, message: str, irb: Irb) -> None:
        super().__init__(message)
        self.irb = irb

    def __reduce__(self) -> tuple[type[ChannelProgramError], tuple[str, Irb]]:
        return type(self), (str(self), self.irb)


def _irq_label(vdev: VfioDevice, index: int) -> str:
    return CcwIrq(index).name if index < lib.VFIO_CCW_NUM_IRQS else CORE_OPS.irq_label(vdev, index)


CCW_OPS: DeviceOps = dataclasses.replace(CORE_OPS, name="vfio-ccw", irq_label=_irq_label)
"""The ops table of channel devices; a variant driver replaces single entries of it."""


class CcwDevice(BusDevice[Mdev]):
    """A channel device (ccw) opened through VFIO; `vfio_user.open_ccw` makes one.

    It has no registers: a channel program in memory says what to do, `start` hands it over, an interrupt says that
    there is a status, `wait` reads it. `run` does all of that. Its interrupts are those of `CcwIrq`: I/O, which this
    class has enabled, a channel report, and the kernel's wish to have the device back.

    Lifetime:
        `close()`, or the ``with`` block. Closing twice does nothing. Opening enables the I/O interrupt.
    Locking:
        All methods may be called from any thread; a subchannel has one program under way at a time.
    """

    vdev = Embedded["CcwDevice", VfioDevice]()
    """The bus-neutral device; ``container_of(vdev, CcwDevice.vdev)`` leads back."""

    def __init__(
        self, node: Mdev, fd: OwnedFd, space: AddressSpace, *, ops: DeviceOps = CCW_OPS, owns_space: bool = False
    ) -> None:
        """Take over an open device; `vfio_user.open_ccw` is the usual way. Arguments as `BusDevice`.

        Raises:
            UnsupportedError: it has no region to start programs by.
        """
        super().__init__(node, fd, space, ops=ops, owns_space=owns_space)
        try:
            self._io = self.region(lib.VFIO_CCW_CONFIG_REGION_INDEX)
            self._vector: IrqVector
            (self._vector,) = self.irq(CcwIrq.IO).enable(1)
        except BaseException:
            self.close()
            raise

    # -- programs

    def start(self, orb: Orb) -> None:
        """Start a channel program: the kernel reads it now, and translates its addresses.

        Raises:
            VfioOSError: EINVAL or ENOENT when something is not mapped, EBUSY while a program is under way, EIO when the
                device is gone, EACCES for data in mode ``"type1"``, where nothing can be pinned; the message says more.
            BoundsError, AlignmentError: a field of the ORB does not fit.
        """
        block = orb.encode() + _START.to_bytes(4, "big") + bytes(8)
        self._write(self._io, block, "start a channel program")

    def wait(self, timeout: float) -> Irb:
        """Wait for the next status of the subchannel, and read it.

        Raises:
            DeadlineError: there was none within ``timeout`` seconds.
        """
        self._vector.wait(timeout)
        return Irb.decode(self._io.pread(_IRB_AT, lib.IRB_AREA_SIZE))

    def run(self, program: ChannelProgram, memory: DmaSlice | DmaBuffer, *, timeout: float = 10.0) -> Irb:
        """Put a program into memory, start it, wait for its end.

        Args:
            program: what to do.
            memory: for the program itself, below 2 GiB, at a multiple of 8; keep it as long as this takes.
            timeout: seconds.

        Returns:
            The last status: ``irb.scsw.count`` has the bytes that the last command left over.

        Raises:
            ChannelProgramError: it ended with a check; says which.
            BoundsError: the memory is too small.
            VfioOSError: it could not be started; see `start`.
            DeadlineError: it did not end; it is still under way: `halt`, or `clear`.
        """
        data = program.place(memory.iova)
        if len(data) > len(memory):
            raise BoundsError(f"a program of {len(data)} bytes does not fit the {len(memory)} that it was given")
        memory.view[: len(data)] = data
        deadline = time.monotonic() + timeout
        self._vector.drain()
        self.start(Orb.of(program, memory.iova))
        while True:
            irb = self.wait(max(0.0, deadline - time.monotonic()))
            if irb.scsw.problems:
                raise ChannelProgramError(f"{self.name}: the channel program ended with {irb}", irb)
            if irb.scsw.ended:
                return irb

    def command(self, command: int, count: int, *, flags: CcwFlag = CcwFlag(0), timeout: float = 10.0) -> bytes:  # noqa: B008
        """Run one command that reads, and give what it read; fewer bytes than ``count`` where the device had no more.

        Raises:
            BoundsError: ``count`` is not 1 to 65535.
            ChannelProgramError, VfioOSError, DeadlineError: see `run`.
        """
        if not 1 <= count <= 0xFFFF:
            raise BoundsError(f"{count} bytes: one command reads 1 to 65535")
        with self.dma_alloc(64 + count, iova_limit=IOVA_LIMIT) as memory:
            data = memory[64:]
            program = ChannelProgram().command(command, data.iova, count, flags=flags)
            irb = self.run(program, memory[:64], timeout=timeout)
            return bytes(data.view[: count - irb.scsw.count])

    def sense_id(self, *, timeout: float = 10.0) -> SenseId:
        """Ask what it is: `Command.SENSE_ID`. Raises as `run` does."""
        return SenseId.decode(self.command(Command.SENSE_ID, 255, flags=CcwFlag.SUPPRESS_LENGTH, timeout=timeout))

    def halt(self, *, timeout: float = 10.0) -> Irb:
        """End what is under way, at a command's end: HSCH. Raises as `clear` does."""
        return self._signal(lib.VFIO_CCW_ASYNC_CMD_HSCH, Function.HALT, timeout)

    def clear(self, *, timeout: float = 10.0) -> Irb:
        """End what is under way, at once: CSCH.

        Returns:
            The status; its functions name what was done.

        Raises:
            UnsupportedError: this kernel can't.
            VfioOSError: it refused: EBUSY, EIO when the device is gone.
            DeadlineError: no status came within ``timeout`` seconds.
        """
        return self._signal(lib.VFIO_CCW_ASYNC_CMD_CSCH, Function.CLEAR, timeout)

    # -- what else there is to know

    def schib(self) -> Schib:
        """Read the subchannel-information block.

        Raises:
            UnsupportedError: this kernel can't.
        """
        return Schib.decode(self._region(CcwRegionSubtype.SCHIB).pread(0, lib.SCHIB_AREA_SIZE))

    def channel_report(self) -> ChannelReport | None:
        """Take the next channel report, after an interrupt of `CcwIrq.CRW`; `None` when there is none.

        Raises:
            UnsupportedError: this kernel can't.
        """
        region = self._region(CcwRegionSubtype.CRW)
        return ChannelReport.decode(int.from_bytes(region.pread(0, region.size)[:4], "big"))

    # -- inside

    def _signal(self, command: int, function: Function, timeout: float) -> Irb:
        region = self._region(CcwRegionSubtype.ASYNC_CMD)
        deadline = time.monotonic() + timeout
        request = ffi.new("struct ccw_cmd_region *", {"command": command})
        self._vector.drain()
        self._write(region, bytes(ffi.buffer(request)), f"{function.name} the subchannel")
        while True:
            irb = self.wait(max(0.0, deadline - time.monotonic()))
            if irb.scsw.functions & function:
                return irb
            if time.monotonic() > deadline:
                raise DeadlineError(f"{self.name}: no status of {function.name} within {timeout:g} s")

    def _region(self, subtype: CcwRegionSubtype) -> Region:
        for region in self.regions:
            if region.info.type == (RegionType.CCW, subtype):
                return region
        raise UnsupportedError(f"{self.name}: this kernel has no region {subtype.name} of channel devices")

    def _write(self, region: Region, data: bytes, what: str) -> None:
        try:
            region.pwrite(0, data)
        except VfioOSError as error:
            code = error.errno or 0
            raise VfioOSError(code, f"{what} on {self.name}", _HINTS.get(code, "")) from error


def require_ccw(mdev: Mdev) -> Mdev:
    """Make sure that a mediated device is a channel device.

    Raises:
        ArgumentError: it is another kind.
    """
    if mdev.device_api != "vfio-ccw":
        raise ArgumentError(f"{mdev} is no channel device, but one of {mdev.device_api or 'an unknown kind'}")
    return mdev

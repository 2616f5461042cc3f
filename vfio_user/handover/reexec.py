"""Live update: a process executes another program, and devices go on reaching memory meanwhile.

::

    carried = carry(devices, {"ring": ring})
    os.execv(sys.executable, [sys.executable, "driver.py", "--resume", str(carried.fd)])

and there::

    resumed = resume(int(arguments.resume))
    ring = resumed.buffers["ring"]

Devices keep their state, are not reset, and find memory at the same IOVAs all the time. Interrupts are off until the
next program enables them, and its registers are at other addresses.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from vfio_user.device.ops import DeviceOps
from vfio_user.errors import ArgumentError, MalformedReplyError, UnsupportedError
from vfio_user.handover.parcel import Parcel, ParcelDevice, pack, unpack
from vfio_user.iommu import AddressSpace, DmaBuffer, explain
from vfio_user.iommu.iommufd import Iommufd
from vfio_user.kernel.fd import OwnedFd
from vfio_user.kernel.mman import Backing, open_memory
from vfio_user.pci.device import PCI_OPS
from vfio_user.session import Devices

__all__ = ["Carried", "Resumed", "carry", "resume"]


class Carried:
    """Devices and buffers that outlive the program.

    Lifetime:
        Until ``exec``. When that fails, or is not wanted any more, `cancel` makes all usable here again.
    Locking:
        None; one thread has it.
    """

    def __init__(self, space: AddressSpace, note: OwnedFd, files: list[int], buffers: list[DmaBuffer]) -> None:
        self._space = space
        self._note = note
        self._files = files
        self._buffers = buffers

    @property
    def fd(self) -> int:
        """Number of the file that `resume` reads; the next program is told it, most simply as an argument."""
        return self._note.fileno()

    def cancel(self) -> None:
        """Stay with this program; cancelling twice does nothing.

        Raises:
            VfioIoctlError: the kernel does not take the addresses of the memory back (modes type1 and type1v2).
        """
        if self._note.closed:
            return
        self._note.close()
        for number in self._files:
            os.set_inheritable(number, False)
        if not self._space.backend.maps_files:
            for buffer in self._buffers:
                buffer.mapping = self._space.adopt(buffer.view, buffer.iova)


@dataclass(frozen=True, slots=True)
class Resumed:
    """What `resume` found."""

    devices: Devices
    """The devices, as if opened here; closing them closes the address space."""
    buffers: Mapping[str, DmaBuffer] = field(default_factory=dict)
    """The buffers by name, with their content and IOVAs."""


def carry(devices: Devices, buffers: Mapping[str, DmaBuffer]) -> Carried:
    """Make devices and DMA memory survive the next ``exec`` of this process.

    Stop using the devices first: interrupts are switched off by this.

    Args:
        devices: with one address space (`vfio_user.open_all`).
        buffers: all that is mapped in it; each has a memory file (``backing="memfd"`` or huge pages).

    Raises:
        ArgumentError: something is mapped that is not among the buffers, or that has no memory file.
        UnsupportedError: the kernel can't: type1 without ``VFIO_UPDATE_VADDR``, or there is no IOMMU.
        VfioOSError: a system call failed; nothing has changed but the interrupts.
    """
    space = devices.address_space
    if not space.mode.translates:
        raise UnsupportedError(explain.no_choice())
    _require_all(space, buffers)
    for device in devices:
        for irq in device.vdev.irqs:
            irq.disable()
    parcel = Parcel(space.backend.files, tuple(_numbered(devices)))
    files = [fd.fileno() for fd in parcel.files] + [buffer.fileno() for buffer in buffers.values()]
    fields = {
        "parcel": pack(parcel),
        "files": [fd.fileno() for fd in parcel.files],
        "buffers": [_describe(name, buffer) for name, buffer in buffers.items()],
    }
    note = OwnedFd(os.memfd_create("vfio-user-carried"), "what is carried over")
    try:
        os.write(note.fileno(), json.dumps(fields).encode())
        if buffers and not space.backend.maps_files:
            space.invalidate_vaddrs()
        for number in (*files, note.fileno()):
            os.set_inheritable(number, True)
    except BaseException:
        note.close()
        raise
    return Carried(space, note, files, list(buffers.values()))


def resume(fd: int, *, ops: DeviceOps = PCI_OPS) -> Resumed:
    """Take over what the program before has carried here.

    Args:
        fd: `Carried.fd`, as the program before named it; closed by this.
        ops: the devices' ops table, for variant drivers.

    Raises:
        MalformedReplyError: the file holds something else, or the files that it names are not open.
        VfioIoctlError: ENOMEM when the memory is beyond this process's limit.
        UnsupportedError: iommufd can't (before 6.14).
    """
    fields, owned = _read(fd)
    with ExitStack() as stack:
        for each in owned.values():
            stack.callback(each.close)
        rows = [_row(each, owned) for each in fields["buffers"]]
        files = [owned[number] for number in fields["files"]]
        devices = stack.enter_context(unpack(fields.get("parcel", {}), files).open(ops))
        space = devices.address_space
        if rows and space.backend.maps_files:
            Iommufd(space.backend.files.control).change_process()
        buffers = {}
        for row in rows:
            memory = open_memory(row.fd.fileno(), row.size, row.backing)
            if space.backend.maps_files:
                mapping = space.adopt_file(memory.fd, memory.view, row.iova)
            else:
                mapping = space.adopt(memory.view, row.iova)
            row.fd.detach()  # the buffer closes it from now on
            buffers[row.name] = DmaBuffer(memory, mapping)
        stack.pop_all()
    return Resumed(devices, buffers)


@dataclass(frozen=True, slots=True)
class _Row:
    name: str
    iova: int
    size: int
    backing: Backing
    fd: OwnedFd


def _require_all(space: AddressSpace, buffers: Mapping[str, DmaBuffer]) -> None:
    ours = {buffer.mapping for buffer in buffers.values()}
    more = [mapping for mapping in space.mappings if mapping not in ours]
    if more:
        raise ArgumentError(f"{more[0]!r} is mapped and not among the buffers; unmap it, or name it too")
    for name, buffer in buffers.items():
        if buffer.mapping not in space.mappings:
            raise ArgumentError(f"buffer {name!r} is not mapped in this address space")
        if buffer.backing is Backing.ANONYMOUS:
            raise ArgumentError(f"buffer {name!r} has no memory file, and ends with this program: backing='memfd'")


def _numbered(devices: Devices) -> Iterator[ParcelDevice]:
    for device in devices:
        bound = device.vdev.iommufd
        yield ParcelDevice(device.address, device.vdev._fd, bound.device_id if bound is not None else 0)


def _describe(name: str, buffer: DmaBuffer) -> dict[str, object]:
    size, backing = buffer.size, buffer.backing.value
    return {"name": name, "iova": buffer.iova, "size": size, "backing": backing, "fd": buffer.fileno()}


def _read(fd: int) -> tuple[dict[str, Any], dict[int, OwnedFd]]:
    """Read what `carry` has written, make all its files this program's own, and close it."""
    with OwnedFd(fd, "what is carried over") as note:
        try:
            fields = json.loads(os.pread(note.fileno(), os.fstat(fd).st_size, 0))
            numbers = [*fields["files"], *(row["fd"] for row in fields["buffers"])]
            for number in numbers:
                os.set_inheritable(number, False)
            if len(set(numbers)) != len(numbers):
                raise ValueError("a file is named twice")
        except (ValueError, KeyError, TypeError, OverflowError, OSError) as error:
            raise MalformedReplyError(f"file {fd} does not say what was carried over: {error!r}") from error
    return fields, {number: OwnedFd(number, "a file that was carried over") for number in numbers}


def _row(fields: Mapping[str, Any], owned: Mapping[int, OwnedFd]) -> _Row:
    try:
        return _Row(fields["name"], fields["iova"], fields["size"], Backing(fields["backing"]), owned[fields["fd"]])
    except (ValueError, KeyError) as error:
        raise MalformedReplyError(f"a buffer that was carried over makes no sense: {error!r}") from error

"""Open devices on their way from one process to another: a description, and files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from vfio_user.addresses import PciAddress
from vfio_user.device.ops import DeviceOps
from vfio_user.errors import ArgumentError, MalformedReplyError
from vfio_user.iommu import AddressSpace, IommuMode
from vfio_user.iommu.backend import open_backend
from vfio_user.iommu.files import SpaceFiles
from vfio_user.iommu.iommufd import BoundDevice, IommufdBackend
from vfio_user.kernel.fd import OwnedFd
from vfio_user.kernel.sysfs import PciFunction
from vfio_user.pci.device import PCI_OPS, PciDevice
from vfio_user.session import Devices

__all__ = ["Parcel", "ParcelDevice", "pack", "unpack"]


@dataclass(frozen=True, slots=True)
class ParcelDevice:
    """One open device."""

    address: PciAddress
    """Where it sits."""
    fd: OwnedFd
    """Its file."""
    device_id: int = 0
    """Its number in the iommufd; 0 when it was opened through its group."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """Open devices, attached to one address space.

    Lifetime:
        `close()` closes all files; `open()` makes devices of them, which own them then.
    Locking:
        None; one thread has it.
    """

    space: SpaceFiles
    """What the address space is made of."""
    devices: tuple[ParcelDevice, ...]
    """The devices."""

    @classmethod
    def of(cls, functions: Iterable[PciFunction], mode: IommuMode) -> Parcel:
        """Open devices with one address space: what `vfio_user.open_all` does first.

        Raises as that does.
        """
        backend = open_backend(mode)
        with ExitStack() as stack:
            stack.callback(backend.close)
            found = []
            for function in functions:
                fd = backend.attach(function)
                stack.callback(fd.close)
                number = fd.device_id if isinstance(fd, BoundDevice) else 0
                found.append(ParcelDevice(function.address, fd, number))
            stack.pop_all()
        return cls(backend.files, tuple(found))

    @property
    def files(self) -> tuple[OwnedFd, ...]:
        """All files: those of the address space, then those of the devices."""
        return (*self.space.files, *(each.fd for each in self.devices))

    def open(self, ops: DeviceOps = PCI_OPS) -> Devices:
        """Make devices of it, as if they had been opened here.

        Nothing is done to the devices, and interrupts that another process had enabled are to be enabled anew.

        Raises:
            BusyError: one is open in this process already.
            VfioOSError: a file is not what it is said to be. All are closed whenever this fails.
        """
        with ExitStack() as stack:
            for each in self.devices:
                stack.callback(each.fd.close)
            space = stack.enter_context(AddressSpace.take_over(self.space))
            found = [stack.enter_context(_device(each, space, ops)) for each in self.devices]
            stack.pop_all()
        devices = Devices(found)
        devices.address_space = space
        return devices

    def close(self) -> None:
        """Close all files, devices first; closing twice does nothing."""
        for fd in reversed(self.files):
            fd.close()


def _device(each: ParcelDevice, space: AddressSpace, ops: DeviceOps) -> PciDevice:
    fd, backend = each.fd, space.backend
    if isinstance(backend, IommufdBackend):
        fd = backend.take_over(fd, str(each.address), each.device_id)
    space.admit(fd)
    return PciDevice(each.address, fd, space, ops=ops)


def pack(parcel: Parcel) -> dict[str, object]:
    """Describe a parcel without its files, as JSON can hold it."""
    return {
        "mode": parcel.space.mode.value,
        "ioas": parcel.space.ioas,
        "groups": [number for number, _ in parcel.space.groups],
        "devices": [{"address": str(each.address), "id": each.device_id} for each in parcel.devices],
    }


def unpack(fields: Mapping[str, object], files: Sequence[OwnedFd]) -> Parcel:
    """Put a parcel together again; whoever sent it may be hostile.

    Args:
        fields: what `pack` gave.
        files: `Parcel.files`, in their order.

    Raises:
        MalformedReplyError: they don't belong together; the files are closed then.
    """
    try:
        mode = IommuMode(fields["mode"])
        groups = [_number(each) for each in _list(fields["groups"])]
        rows = [(PciAddress.parse(_text(row["address"])), _number(row["id"])) for row in _list(fields["devices"])]
        if len(files) != 1 + len(groups) + len(rows) or not rows or len(set(rows)) != len(rows):
            raise ValueError(f"{len(files)} files for {len(groups)} groups and {len(rows)} devices")
        places = iter(files)
        space = SpaceFiles(mode, next(places), tuple(zip(groups, places, strict=False)), _number(fields["ioas"]))
    except (ValueError, KeyError, TypeError, ArgumentError) as error:
        for fd in files:
            fd.close()
        raise MalformedReplyError(f"what was passed is no parcel of devices: {error!r}") from error
    rest = files[1 + len(groups) :]
    devices = (ParcelDevice(address, fd, number) for (address, number), fd in zip(rows, rest, strict=True))
    return Parcel(space, tuple(devices))


def _number(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 32:
        raise ValueError(f"{value!r} is not a number of 32 bits")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not text")
    return value


def _list(value: object) -> list[dict[str, object]]:
    if not isinstance(value, list):
        raise ValueError(f"{value!r} is not a list")
    return value

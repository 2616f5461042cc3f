"""Devices on loan: what a process without privilege gets of a broker."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from vfio_user.addresses import PciAddress
from vfio_user.device.ops import DeviceOps
from vfio_user.errors import ArgumentError, LeaseError, MalformedReplyError
from vfio_user.handover.parcel import unpack
from vfio_user.handover.sockets import SOCKET, connect
from vfio_user.iommu import IommuMode
from vfio_user.kernel.fd import OwnedFd
from vfio_user.kernel.passing import receive, send
from vfio_user.pci.device import PCI_OPS
from vfio_user.session import Devices

__all__ = ["Lease", "borrow"]


class Lease:
    """Devices that a broker has opened for this process.

    Lifetime:
        `close()`, or the ``with`` block, closes the devices and gives them back; so does the end of the process. When
        the broker ends, the devices stay.
    Locking:
        See `Devices`.
    """

    def __init__(self, devices: Devices, connection: OwnedFd) -> None:
        self.devices = devices
        """The devices, in the order in which they were asked for."""
        self._connection = connection

    def close(self) -> None:
        """Close the devices, and give them back; closing twice does nothing.

        Raises:
            ExceptionGroup: see `Devices.close`; they are given back nevertheless.
        """
        try:
            self.devices.close()
        finally:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        names = ", ".join(each.name for each in self.devices)
        return f"<Lease of {names}{' closed' if self._connection.closed else ''}>"


def borrow(
    *addresses: str | PciAddress,
    broker: Path | str = SOCKET,
    mode: IommuMode | str = "auto",
    timeout: float = 30.0,
    ops: DeviceOps = PCI_OPS,
) -> Lease:
    """Get devices from a broker (``vfio-user broker``), with one address space; all or none. Needs no privilege.

    ::

        with vfio_user.borrow("0000:01:00.0") as lease:
            (pci,) = lease.devices

    Args:
        addresses: which devices.
        broker: its socket.
        mode: which IOMMU back end, by name; by default the broker chooses.
        timeout: seconds for each message.
        ops: the devices' ops table, for variant drivers.

    Raises:
        ArgumentError: no addresses were given, or one is none.
        LeaseError: the broker refuses; says why.
        VfioOSError: no broker answers at that socket.
        DeadlineError: it does not answer in time.
    """
    wanted = [PciAddress.parse(address) for address in addresses]
    if not wanted:
        raise ArgumentError("no addresses were given")
    word = mode if mode == "auto" else IommuMode.parse(mode).value
    with connect(broker, timeout) as connection:
        send(connection, {"devices": [str(each) for each in wanted], "mode": word})
        message, files = receive(connection)
        devices = _open(message, files, wanted, ops)
        # From here on it is closed in forked children, as everything is that keeps a device.
        return Lease(devices, OwnedFd(connection.detach(), f"connection to {broker}"))


def _open(
    message: dict[str, object], files: Sequence[OwnedFd], wanted: Sequence[PciAddress], ops: DeviceOps
) -> Devices:
    fields = message.get("parcel")
    if not isinstance(fields, dict):
        for fd in files:
            fd.close()
        raise LeaseError(f"the broker refuses: {message.get('refused', 'it does not say why')}")
    parcel = unpack(fields, files)
    if [each.address for each in parcel.devices] != list(dict.fromkeys(wanted)):
        parcel.close()
        raise MalformedReplyError("the broker passed other devices than were asked for")
    return parcel.open(ops)

"""The broker: a small privileged process that opens devices for others, which drive them without privilege."""

from __future__ import annotations

import logging
import selectors
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from vfio_user.addresses import PciAddress
from vfio_user.errors import ArgumentError, BusyError, MalformedReplyError, UnsupportedError, VfioError
from vfio_user.handover.parcel import Parcel, ParcelDevice, pack
from vfio_user.handover.policy import Policy
from vfio_user.handover.revoke import revoke
from vfio_user.iommu import IommuMode, explain
from vfio_user.iommu.modes import common_mode
from vfio_user.kernel import sysfs
from vfio_user.kernel.passing import Peer, peer_of, receive, send
from vfio_user.kernel.sysfs import PciFunction

__all__ = ["Broker"]

_log = logging.getLogger(__name__)

_MAX_DEVICES = 32
_MAX_PEERS = 64
_MAX_PEERS_OF_USER = 16
_LOOK = 1.0


@dataclass(slots=True)
class _Peer:
    """One connection: it asks once, and has what it got until it closes."""

    connection: socket.socket
    who: Peer
    deadline: float
    parcel: Parcel | None = None


class Broker:
    """Lend devices to who may have them, for as long as they keep the connection.

    A peer connects, asks for devices by address, and gets their files and those of one address space (``SCM_RIGHTS``).
    Who it is the kernel says (`Peer`), and whether it may, the `Policy`. The lease ends with the connection: when the
    peer closes it, ends, or is killed. Then nothing of memory is reachable for the devices any more, and they are
    closed here; a process that still holds one, such as a child of the peer, is named in the log, its device is reset,
    and is lent again when that process lets go.

    Only devices that are bound to a VFIO driver and have an IOMMU are lent: without one, a device reaches all memory.

    Lifetime:
        `close()`, or the ``with`` block, ends the service. Drivers keep what they have: a broker may be restarted
        under them.
    Locking:
        None; one thread calls `serve`, `stop` may be called from any, or from a signal handler.
    """

    def __init__(self, policy: Policy, listener: socket.socket, *, request_timeout: float = 10.0) -> None:
        """Take over a listening socket.

        Args:
            policy: who may have what.
            listener: from `listen` or `inherited`; closed with the broker.
            request_timeout: seconds that a peer has to ask, and to read its answer.
        """
        self.policy = policy
        """Who may have what."""
        self._listener = listener
        self._request_timeout = request_timeout
        self._selector = selectors.DefaultSelector()
        self._peers: dict[int, _Peer] = {}
        self._stopped, self._waker = socket.socketpair()
        listener.setblocking(False)
        self._waker.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(self._stopped, selectors.EVENT_READ)

    @property
    def lent(self) -> dict[PciAddress, Peer]:
        """Which devices are lent, and to whom."""
        return {device.address: peer.who for peer, device in self._lent()}

    def serve(self) -> None:
        """Serve until `stop`."""
        while True:
            for key, _ in self._selector.select(_LOOK):
                if key.fileobj is self._stopped:
                    return
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._hear(self._peers[key.fd])
            self._lose_patience()

    def stop(self) -> None:
        """Let `serve` return."""
        try:
            self._waker.send(b".")
        except (BlockingIOError, OSError):
            return  # it is told already, or closed

    def close(self) -> None:
        """End the service; closing twice does nothing."""
        for peer in list(self._peers.values()):
            self._peers.pop(peer.connection.fileno())
            peer.connection.close()
            if peer.parcel is not None:
                peer.parcel.close()
        self._selector.close()
        for each in (self._listener, self._stopped, self._waker):
            each.close()

    # -- peers

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError as error:  # it has gone already, or there are no descriptors left
            _log.warning("nobody was let in: %s", error)
            time.sleep(0.01)
            return
        try:
            who = peer_of(connection)
        except VfioError as error:
            _log.warning("%s", error)
            connection.close()
            return
        of_user = sum(each.who.uid == who.uid for each in self._peers.values())
        if len(self._peers) >= _MAX_PEERS or of_user >= _MAX_PEERS_OF_USER:
            _log.warning("user %d has %d connections, all have %d: no more", who.uid, of_user, len(self._peers))
            connection.close()
            return
        connection.setblocking(False)
        self._peers[connection.fileno()] = _Peer(connection, who, time.monotonic() + self._request_timeout)
        self._selector.register(connection, selectors.EVENT_READ)

    def _hear(self, peer: _Peer) -> None:
        """Answer a request; anything else, the end above all, ends the lease."""
        try:
            request, files = receive(peer.connection)
        except VfioError:
            self._drop(peer)
            return
        for fd in files:
            fd.close()
        if peer.parcel is not None or files:
            _log.warning("process %d (user %d) does not keep to the protocol", peer.who.pid, peer.who.uid)
            self._drop(peer)
            return
        try:
            parcel = self._lend(peer.who, request)
        except VfioError as error:
            _log.info("refused to process %d (user %d): %s", peer.who.pid, peer.who.uid, error)
            self._answer(peer, {"refused": str(error)})
            self._drop(peer)
            return
        peer.parcel, peer.deadline = parcel, float("inf")
        names = ", ".join(str(each.address) for each in parcel.devices)
        _log.info("lent %s to process %d (user %d)", names, peer.who.pid, peer.who.uid)
        if not self._answer(peer, {"parcel": pack(parcel)}, parcel):
            self._drop(peer)

    def _answer(self, peer: _Peer, message: dict[str, object], parcel: Parcel | None = None) -> bool:
        try:
            send(peer.connection, message, [fd.fileno() for fd in parcel.files] if parcel is not None else ())
        except VfioError as error:
            _log.info("process %d does not take its answer: %s", peer.who.pid, error)
            return False
        return True

    def _drop(self, peer: _Peer) -> None:
        self._selector.unregister(peer.connection)
        del self._peers[peer.connection.fileno()]
        peer.connection.close()
        if peer.parcel is not None:
            revoke(peer.parcel)

    def _lose_patience(self) -> None:
        now = time.monotonic()
        for peer in [each for each in self._peers.values() if each.deadline < now]:
            _log.info("process %d (user %d) has asked for nothing", peer.who.pid, peer.who.uid)
            self._drop(peer)

    # -- devices

    def _lend(self, who: Peer, request: dict[str, object]) -> Parcel:
        addresses, wanted = _read(request)
        for address in addresses:
            # The same words whether or not there is such a device: who may not have it learns nothing.
            if not self.policy.allows(who, address):
                raise ArgumentError(f"user {who.uid} may not have {address} here")
        lent = self.lent
        taken = [f"{each} (process {lent[each].pid})" for each in addresses if each in lent]
        if taken:
            raise BusyError(f"lent already: {', '.join(taken)}")
        functions = [sysfs.pci_function(address) for address in addresses]
        for function in functions:
            if function.noiommu or function.iommu_group is None:
                raise UnsupportedError(f"{function.name} has no IOMMU, and would reach all memory: it is not lent")
        mode = common_mode(functions) if wanted == "auto" else IommuMode.parse(wanted)
        if not mode.translates:
            raise UnsupportedError(explain.wrong_mode(str(addresses[0]), mode.value, noiommu=False))
        if mode is not IommuMode.IOMMUFD:
            self._require_groups(who, functions)
        return Parcel.of(functions, mode)

    def _require_groups(self, who: Peer, functions: list[PciFunction]) -> None:
        """A group's file opens each device of the group."""
        for number in {each.iommu_group for each in functions}:
            for member in sysfs.group(number or 0).members:
                if "vfio" in (member.driver or "") and not self.policy.allows(who, member.address):
                    raise ArgumentError(
                        f"group {number} would give user {who.uid} {member.address} too, which is not allowed here"
                    )

    def _lent(self) -> Iterator[tuple[_Peer, ParcelDevice]]:
        for peer in self._peers.values():
            for device in peer.parcel.devices if peer.parcel is not None else ():
                yield peer, device

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _read(request: dict[str, object]) -> tuple[list[PciAddress], str]:
    """Read a request, whoever wrote it."""
    names, mode = request.get("devices"), request.get("mode", "auto")
    if not isinstance(names, list) or not all(isinstance(name, str) and len(name) <= 100 for name in names):
        raise MalformedReplyError("a request has a list of addresses")
    if not isinstance(mode, str):
        raise MalformedReplyError("a mode is a word")
    addresses = list(dict.fromkeys(PciAddress.parse(name) for name in names))
    if not 0 < len(addresses) <= _MAX_DEVICES:
        raise ArgumentError(f"{len(addresses)} devices were asked for; 1 to {_MAX_DEVICES} can be")
    return addresses, mode

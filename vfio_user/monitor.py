"""Let other processes see what a driver's process knows of its device: ``vfio-user watch`` shows it.

The driver's process runs a `Monitor`, which answers on a local socket; `ask` is the other end.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import threading
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from vfio_user.drivers import Driver
from vfio_user.errors import BusyError, VfioError, VfioOSError
from vfio_user.kernel.fd import OwnedFd
from vfio_user.memory import WindowState

if TYPE_CHECKING:
    from vfio_user.pci import PciDevice

__all__ = ["Monitor", "ask"]

_CREDENTIALS = struct.Struct("=iII")  # struct ucred: pid, uid, gid
_PATIENCE = 1.0
_SHOWN = 32
"""Mappings that are listed; the rest are counted."""
_LARGEST = 1 << 20


class Monitor:
    """Publish what this process knows of a device, to processes of the same user and of root.

    ::

        with vfio_user.open("0000:01:00.0") as pci, vfio_user.Monitor(pci), Edu(pci) as edu:
            ...

    Nothing is done until somebody asks; then a thread looks at what there is, and reads the registers that the driver
    has declared and whose reading changes nothing, through the memory lock as everybody does. Nothing can be changed
    through it.

    Lifetime:
        From ``with`` to its end; close it before the device. It leaves no file behind: its socket is an abstract one.
        A forked child has none.
    Locking:
        None needed.
    """

    def __init__(self, pci: PciDevice) -> None:
        """Take a device; nothing is published before ``with``."""
        self._pci = pci
        self._listener: OwnedFd | None = None
        self._bell: OwnedFd | None = None
        self._thread: threading.Thread | None = None

    def state(self) -> dict[str, object]:
        """Give what is published, as plain data."""
        pci, vdev = self._pci, self._pci.vdev
        window = vdev.window
        memory: dict[str, object] = {"state": "not mapped"}
        if window is not None:
            memory = {
                "state": WindowState(window.state).name.lower(),
                "reason": vdev.memory.reason.name.lower(),
                "holders": [{"thread": thread, "seconds": seconds} for thread, seconds in window.holders()],
                "revived": window.generation,
                "peers": len(vdev.memory.peers),
            }
        mappings = pci.address_space.mappings
        return {
            "pid": os.getpid(),
            "device": pci.name,
            "mode": pci.address_space.mode.value,
            "health": vdev.health.value,
            "driver": None if pci.driver is None else type(pci.driver).__name__,
            "resets": pci.resets,
            "memory": memory,
            "low_power": pci.low_power.active,
            "vectors": {irq.label: len(irq.vectors) for irq in vdev.irqs if irq.vectors},
            "mappings": len(mappings),
            "mapped_bytes": sum(each.size for each in mappings),
            "dma": [{"iova": each.iova, "size": each.size} for each in mappings[:_SHOWN]],
            "registers": self._registers(),
        }

    def _registers(self) -> list[dict[str, object]]:
        rows: list[dict[str, object]] = []
        driver = self._pci.driver
        if isinstance(driver, Driver):
            for each, bar, base in driver.find_registers(self._pci.config):
                for reading in each(self._pci.bar(bar), base).snapshot():
                    rows.append({"map": each.__name__, "bar": bar, **reading.to_json()})
        return rows

    # -- the socket

    def start(self) -> None:
        """Publish.

        Raises:
            BusyError: a monitor of this device is running.
        """
        if self._listener is not None:
            raise BusyError(f"this monitor of {self._pci.name} is running already")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            try:
                listener.bind(_name(self._pci.name))
                listener.listen(8)
            except OSError as error:
                raise BusyError(f"another monitor of {self._pci.name} is running") from error
            self._bell = OwnedFd(os.eventfd(0, os.EFD_CLOEXEC), f"monitor of {self._pci.name}")
            self._listener = OwnedFd(listener.detach(), f"monitor of {self._pci.name}")
        # Named here: by the time that it runs, `stop` may have taken them.
        files = (self._listener, self._bell)
        self._thread = threading.Thread(target=self._serve, args=files, name="vfio_user monitor", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Publish no more; stopping twice does nothing."""
        thread, self._thread = self._thread, None
        listener, self._listener = self._listener, None
        bell, self._bell = self._bell, None
        if thread is None or listener is None or bell is None:
            return
        if not bell.closed:  # a forked child's copy is, and it has no thread
            os.eventfd_write(bell.fileno(), 1)
            thread.join()
        listener.close()
        bell.close()

    def _serve(self, listener: OwnedFd, bell: OwnedFd) -> None:
        poller = select.poll()
        poller.register(listener, select.POLLIN)
        poller.register(bell, select.POLLIN)
        door = socket.socket(fileno=listener.fileno())
        try:
            while True:
                ready = {fd for fd, _ in poller.poll()}
                if bell.fileno() in ready:
                    return
                with suppress(OSError):  # who asked has gone
                    connection, _ = door.accept()
                    with connection:
                        self._answer(connection)
        finally:
            door.detach()  # `stop` closes it

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(_PATIENCE)
        if _peer(connection)[1] not in (0, os.geteuid()):
            return
        try:
            state: dict[str, object] = self.state()
        except VfioError as error:
            state = {"pid": os.getpid(), "device": self._pci.name, "error": f"{type(error).__name__}: {error}"}
        connection.sendall(json.dumps(state).encode())

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<Monitor of {self._pci.name}{'' if self._listener else ' stopped'}>"


def ask(device: str, *, timeout: float = 2 * _PATIENCE) -> dict[str, Any] | None:
    """Ask the process that drives a device what it knows; `None` when it runs no monitor.

    Args:
        device: PCI address, as sysfs spells it.
        timeout: seconds for the answer.

    Raises:
        VfioOSError: it did not answer, or is another user's.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        try:
            connection.connect(_name(device))
            if os.geteuid() not in (0, _peer(connection)[1]):
                raise PermissionError(1, "Operation not permitted")
            data = b""
            while part := connection.recv(1 << 16):
                data += part
                if len(data) > _LARGEST:
                    raise OSError(7, "Argument list too long")
        except ConnectionRefusedError:
            return None
        except OSError as error:
            raise VfioOSError(error.errno or 110, f"ask the monitor of {device}") from error
    try:
        answer = json.loads(data)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise VfioOSError(71, f"ask the monitor of {device}", "It is another user's, or something else has its name")
    return answer


def _name(device: str) -> str:
    return f"\0vfio-user/monitor/{device}"


def _peer(connection: socket.socket) -> tuple[int, int, int]:
    """Give process, user and group of who is at the other end."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(raw)
    return pid, uid, gid

"""What a program in the guest can know and ask: the devices, the output folder, QEMU's monitor."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vfio_user.testing import monitor
from vfio_user.testing.errors import GuestError

__all__ = ["GuestDevice", "NotInGuestError", "device", "devices", "hmp", "in_guest", "output", "qmp"]


class NotInGuestError(GuestError):
    """Report a call that only makes sense in a guest that `vfio-user guest` booted."""


@dataclass(frozen=True, slots=True)
class GuestDevice:
    """An emulated device of this guest."""

    name: str
    """Kind and number: ``nvme0``; also its id in QEMU's monitor."""
    kind: str
    """Kind: ``nvme``."""
    address: str
    """Address in the guest: ``0000:01:00.0``; what its bus calls it where that is not PCI."""
    bus: str = "pci"
    """Bus in ``/sys/bus``; ``css`` for the subchannel of a ccw device."""

    @property
    def slot(self) -> str:
        """Address without the function: devices of one slot share it."""
        return self.address.rpartition(".")[0]


def in_guest() -> bool:
    """Say whether this process runs in a guest of `vfio-user guest`."""
    return "VFIO_USER_DEVICES" in os.environ


def devices(kind: str | None = None) -> tuple[GuestDevice, ...]:
    """Return the guest's emulated devices, in the order in which they were asked for.

    Args:
        kind: only those of this kind: ``"edu"``; None for all.

    Raises:
        NotInGuestError: this is not such a guest.
    """
    rows = json.loads(Path(_variable("VFIO_USER_DEVICES")).read_text())
    found = (GuestDevice(row["name"], row["kind"], row["address"], row["bus"]) for row in rows)
    return tuple(item for item in found if kind in (None, item.kind))


def device(name: str) -> GuestDevice:
    """Return the device called `name` (``"nvme0"``), or the first of that kind (``"nvme"``).

    Raises:
        GuestError: there is none; the message lists those that are there.
    """
    everything = devices()
    for item in everything:
        if name in (item.name, item.kind):
            return item
    present = ", ".join(item.name for item in everything) or "none at all"
    raise GuestError(
        f"this guest has no device {name!r}, but {present}; boot it with --device {name.rstrip('0123456789')}"
    )


def output() -> Path:
    """Return the folder whose files outlive the guest."""
    return Path(_variable("VFIO_USER_OUTPUT"))


def qmp(command: str, timeout: float = 30.0, **arguments: object) -> object:
    """Run a QMP command in the QEMU that runs this guest: ``qmp("device_del", id="edu0")``.

    Args:
        command: QMP's name of it.
        timeout: seconds for the answer.
        arguments: the command's arguments; an underscore in a name stands for QMP's hyphen.

    Raises:
        MonitorError: QEMU refused it.
        DeadlineError: no answer in time.
    """
    return _ask(command, {name.replace("_", "-"): value for name, value in arguments.items()}, timeout)


def hmp(line: str, timeout: float = 30.0) -> str:
    """Run a command of the human monitor (``pcie_aer_inject_error virtio-net0 COMP_TIME``); return what it prints."""
    return str(_ask("human-monitor-command", {"command-line": line}, timeout))


def _ask(command: str, arguments: Mapping[str, object], timeout: float) -> object:
    return monitor.ask(output() / "guest" / "requests", command, arguments, timeout)


def _variable(name: str) -> str:
    try:
        return os.environ[name]
    except KeyError:
        raise NotInGuestError(f"${name} is not set: run this in a guest, with vfio-user guest -- COMMAND") from None

"""One look at a device that is in use, from outside: reads only, and disturbs nobody."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vfio_user.binding.state import expected_nodes
from vfio_user.errors import MalformedReplyError, UnsupportedError, VfioError
from vfio_user.inventory.readings import driver_of, live_registers
from vfio_user.kernel.sysfs import PciFunction
from vfio_user.monitor import ask
from vfio_user.pci import Command
from vfio_user.pci.decode import decode
from vfio_user.pci.frozen import read_config

__all__ = ["Observation", "Opener", "observe"]

PROC = Path("/proc")
_LOCKED = ("VmPin", "VmLck")


@dataclass(frozen=True, slots=True)
class Opener:
    """A process that has a device open."""

    pid: int
    """Its number."""
    command: str
    """Its command line."""
    pinned: int
    """Memory that is pinned or locked for it, bytes."""
    limit: int | None
    """How much it may lock, bytes; `None` without a limit."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What one look has seen."""

    address: str
    """The device."""
    status: dict[str, str]
    """What sysfs and configuration space say."""
    interrupts: dict[str, int]
    """How often each of its vectors was delivered since it was set up, by the kernel's name of it."""
    openers: tuple[Opener, ...]
    """The processes that have it open, as far as this user may know."""
    registers: tuple[dict[str, Any], ...]
    """Registers of its map: map, name, offset, value, text, ...; empty where they can't be read."""
    inside: dict[str, Any] | None
    """What the process that drives it says, by its `Monitor`; `None` when it has none."""
    notes: tuple[str, ...]
    """What could not be seen, and why."""

    def to_json(self) -> dict[str, object]:
        """Give it as plain data."""
        return asdict(self)


def observe(function: PciFunction) -> Observation:
    """Look at a device: configuration and status, interrupts, who has it open, registers, and what its driver says.

    Registers come from the driver's process where that runs a `vfio_user.Monitor`, else through sysfs where the kernel
    allows it; else there are none, and a note says why.

    Raises:
        VfioOSError: it went away.
    """
    notes: list[str] = []
    inside: dict[str, Any] | None = None
    openers = tuple(_openers(function))
    try:
        inside = ask(function.name)
        if inside is not None and openers and inside.get("pid") not in {each.pid for each in openers}:
            notes.append(f"process {inside.get('pid')} answers for a device that it does not have open; not believed")
            inside = None
    except VfioError as error:
        notes.append(str(error))
    if function.driver is not None and "vfio" in function.driver and not openers:
        notes.append("nobody has it open" if os.geteuid() == 0 else "who has it open: only root is told of others")
    registers: tuple[dict[str, Any], ...] = ()
    if inside is not None:
        registers = tuple(inside.pop("registers", ()))
    if not registers and openers:
        registers = tuple(_live(function, notes))
    status = _status(function, notes)
    return Observation(function.name, status, _interrupts(function.name), openers, registers, inside, tuple(notes))


def _live(function: PciFunction, notes: list[str]) -> Iterator[dict[str, Any]]:
    try:
        driver = driver_of(function)
    except UnsupportedError:
        return  # nobody has declared any
    try:
        with live_registers(function, driver) as laid:
            for each, bar in laid:
                for reading in each.snapshot():
                    yield {"map": type(each).__name__, "bar": bar, **reading.to_json()}
    except VfioError as error:
        notes.append(f"registers: {error}")


def _status(function: PciFunction, notes: list[str]) -> dict[str, str]:
    status = {"driver": function.driver or "none"}
    state = _text(function.path / "power_state") or "unknown"
    runtime = _text(function.path / "power/runtime_status")
    status["power"] = state if runtime in (None, "active") else f"{state}, {runtime}"
    speed, width = (_text(function.path / f"current_link_{name}") for name in ("speed", "width"))
    if speed and width:
        status["link"] = f"{speed}, x{width}"
    # Reading configuration space wakes a device that has no power at all.
    config = read_config(function.path) if state != "D3cold" else None
    if config is not None:
        status["command"] = _names(Command(config.command))
        status["status"] = f"{config.read16(6):#06x}"
        with suppress(MalformedReplyError):
            for each in decode(config):
                if each.name in ("msi", "msix", "aer") and str(each):
                    status[each.name] = str(each)
    totals = list(_aer(function))
    if totals:
        status["errors"] = ", ".join(totals)
    return status


def _aer(function: PciFunction) -> Iterator[str]:
    for kind in ("correctable", "nonfatal", "fatal"):
        text = _text(function.path / f"aer_dev_{kind}") or ""
        found = re.search(r"^TOTAL_ERR_\w+ (\d+)$", text, re.MULTILINE)
        if found:
            yield f"{kind} {found[1]}"


def _names(flags: Command) -> str:
    names = [each.name.lower() for each in Command if flags & each and each.name]
    return " ".join(names) or "all off"


def _interrupts(address: str) -> dict[str, int]:
    """Give the counts of ``/proc/interrupts`` that are of a device, summed over processors."""
    try:
        lines = (PROC / "interrupts").read_text().splitlines()
    except OSError:
        return {}
    processors = len(lines[0].split()) if lines else 0
    found = {}
    for line in lines[1:]:
        words = line.split()
        if address not in line or len(words) < processors + 2:
            continue
        counts = words[1 : 1 + processors]
        if all(each.isdigit() for each in counts):
            found[words[-1]] = sum(map(int, counts))
    return found


def _openers(function: PciFunction) -> Iterator[Opener]:
    nodes = {str(path) for path, _ in expected_nodes(function)} if function.vfio_device else set()
    if not nodes:
        return
    for folder in sorted(PROC.glob("[0-9]*"), key=lambda each: int(each.name)):
        with suppress(OSError):  # it ended meanwhile, or is another user's
            if any(_link(fd) in nodes for fd in (folder / "fd").iterdir()):
                yield _opener(folder)


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _opener(folder: Path) -> Opener:
    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    fields = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line)
    pinned = sum(int(fields[name].split()[0]) << 10 for name in _LOCKED if name in fields)
    limit = re.search(r"^Max locked memory\s+(\S+)", (folder / "limits").read_text(), re.MULTILINE)
    number = int(limit[1]) if limit and limit[1].isdigit() else None
    return Opener(int(folder.name), " ".join(command.split()), pinned, number)


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None

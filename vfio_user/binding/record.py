"""One entry of the journal, and its form on disk. What is read back is checked as if a stranger had written it."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from typing import Any

from vfio_user.addresses import PciAddress
from vfio_user.binding import files
from vfio_user.binding.state import BindState, NodeState
from vfio_user.errors import ArgumentError, JournalError

__all__ = ["NO_DRIVER", "Record", "check_driver_name", "decode", "encode", "override_for"]

NO_DRIVER = "none"
"""Override of a device that is to have no driver: no driver is called so, hence none takes it by itself."""

_VERSION = 1
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")
_NODE = re.compile(r"/vfio/(devices/(noiommu-)?vfio\d+|(noiommu-)?\d+)")
_BOOT = re.compile(r"[0-9a-f-]{1,64}")


@dataclass(frozen=True, slots=True)
class Record:
    """What a device was before it was changed, and what it was changed to."""

    address: PciAddress
    """Which device."""
    vendor: int
    """Its vendor id: another device may sit there later."""
    device: int
    """Its device id."""
    boot: str
    """Boot id of the kernel that was running: after a reboot the change is gone by itself."""
    before: BindState
    """What it was."""
    driver: str | None
    """Driver that it was to have; `None` for none."""
    earlier: tuple[str | None, ...] = ()
    """Drivers that it was changed to before, while the change to the present one is under way."""
    nodes: tuple[NodeState, ...] = ()
    """Nodes that were handed over, as they are since."""
    complete: bool = False
    """Whether the change came to its end."""

    @property
    def drivers(self) -> frozenset[str | None]:
        """All drivers that it may have by our doing, from before to now; none, on the way from one to the next."""
        return frozenset({self.before.driver, *self.earlier, self.driver, None})

    @property
    def overrides(self) -> frozenset[str | None]:
        """All values that ``driver_override`` may have by our doing."""
        named = {override_for(each) for each in (*self.earlier, self.driver)}
        # On its way back it may be kept from all drivers for a moment.
        return frozenset({self.before.override, self.before.driver, NO_DRIVER, *named})


def override_for(driver: str | None) -> str:
    """Give the override that leaves a device no driver but this one."""
    return driver if driver is not None else NO_DRIVER


def check_driver_name(name: str) -> str:
    """Refuse what can't be the name of a kernel driver, before it gets near sysfs.

    Raises:
        ArgumentError: it can't.
    """
    if not _NAME.fullmatch(name) or name == NO_DRIVER:
        raise ArgumentError(f"{name!r} is not the name of a kernel driver; ls /sys/bus/pci/drivers lists them")
    return name


def encode(record: Record) -> str:
    """Write a record as JSON."""
    fields = dataclasses.asdict(record) | {"version": _VERSION, "address": str(record.address)}
    return json.dumps(fields, indent=1, sort_keys=True) + "\n"


def decode(text: str, source: str) -> Record:
    """Read a record from JSON.

    Args:
        text: the JSON.
        source: where it is from, for messages.

    Raises:
        JournalError: it is not what `encode` writes.
    """
    try:
        fields = json.loads(text)
        if fields["version"] != _VERSION:
            raise ValueError(f"version {fields['version']!r} instead of {_VERSION}")
        return Record(
            address=PciAddress.parse(_matching(re.compile(r".{1,64}"), fields["address"])),
            vendor=_number(fields["vendor"], 1 << 16),
            device=_number(fields["device"], 1 << 16),
            boot=_matching(_BOOT, fields["boot"]),
            before=_state(fields["before"]),
            driver=_optional(_NAME, fields["driver"]),
            earlier=tuple(_optional(_NAME, each) for each in fields["earlier"]),
            nodes=_nodes(fields["nodes"]),
            complete=fields["complete"] is True,
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ArgumentError) as error:
        raise JournalError(
            f"{source} is not a record of this version ({error}): look at it, put the device back by hand, remove it"
        ) from error


def _state(fields: dict[str, Any]) -> BindState:
    numvfs = fields["numvfs"]
    return BindState(
        driver=_optional(_NAME, fields["driver"]),
        module=_optional(_NAME, fields["module"]),
        override=_optional(_NAME, fields["override"]),
        numvfs=None if numvfs is None else _number(numvfs, 1 << 16),
        nodes=_nodes(fields["nodes"]),
    )


def _nodes(rows: list[dict[str, Any]]) -> tuple[NodeState, ...]:
    return tuple(
        NodeState(
            path=f"{files.DEV}{_matching(_NODE, row['path'].removeprefix(str(files.DEV)))}",
            uid=_number(row["uid"], 1 << 32),
            gid=_number(row["gid"], 1 << 32),
            mode=_number(row["mode"], 1 << 12),
        )
        for row in rows
    )


def _number(value: object, limit: int) -> int:
    if type(value) is not int or not 0 <= value < limit:
        raise ValueError(f"{value!r} is not a number below {limit}")
    return value


def _matching(pattern: re.Pattern[str], value: object) -> str:
    if type(value) is not str or not pattern.fullmatch(value):
        raise ValueError(f"{value!r} is not possible here")
    return value


def _optional(pattern: re.Pattern[str], value: object) -> str | None:
    return None if value is None else _matching(pattern, value)

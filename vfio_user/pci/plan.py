"""What a hot reset would do, before it is done: who is affected, who is not ours, what blocks it, and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from vfio_user.addresses import PciAddress
from vfio_user.device.base import open_devices
from vfio_user.errors import NotOwnedError, ResetBlockedError
from vfio_user.iommu.group import open_group
from vfio_user.kernel import sysfs
from vfio_user.pci.hot_reset_info import AffectedFunction, HotResetInfo

__all__ = ["AffectedDevice", "ResetPlan", "make_plan"]


@dataclass(frozen=True, slots=True)
class AffectedDevice:
    """One function that a hot reset affects, and what stands against it."""

    address: PciAddress
    """Where it sits."""
    driver: str | None
    """The kernel's driver that it is bound to; `None` when there is none."""
    group: int | None
    """Its IOMMU group; `None` where the kernel tells of device ids instead, and sysfs of none."""
    dev_id: int | None
    """Its id in the iommufd; `None` in the form with groups."""
    owned: bool
    """Whether this process has what proves that it may reset it."""
    opened: bool
    """Whether this process has it open: its driver is told, and its memory taken away and given back."""
    blocker: str = ""
    """Why the kernel refuses because of it; empty when it does not."""
    remedy: str = ""
    """What to do about that, in one sentence."""

    @property
    def verdict(self) -> str:
        """One of ``"blocks"``, ``"not ours"``, ``"open"`` and ``"ours, not open"``."""
        if self.blocker:
            return "blocks"
        if not self.owned:
            return "not ours"
        return "open" if self.opened else "ours, not open"

    def to_json(self) -> dict[str, object]:
        """Give it as plain data."""
        return {
            "address": str(self.address),
            "driver": self.driver,
            "group": self.group,
            "dev_id": self.dev_id,
            "owned": self.owned,
            "open": self.opened,
            "blocker": self.blocker or None,
        }


@dataclass(frozen=True, slots=True)
class ResetPlan:
    """What a hot reset of a device would do. ``str()`` makes a table of it for people, `to_json` plain data.

    Lifetime:
        A value; the machine may change after it was made, and the kernel checks everything again.
    Locking:
        None; immutable.
    """

    device: str
    """The device that was asked."""
    by_dev_id: bool
    """Ownership goes by iommufd, not by open groups."""
    affected: tuple[AffectedDevice, ...]
    """Everything that is reset together, the device itself included, ordered by address."""

    @property
    def possible(self) -> bool:
        """Tell whether the reset can be done as things stand."""
        return not self.blocking and not self.not_owned

    @property
    def blocking(self) -> tuple[AffectedDevice, ...]:
        """Those that keep the kernel from doing it, whoever asks."""
        return tuple(each for each in self.affected if each.blocker)

    @property
    def not_owned(self) -> tuple[AffectedDevice, ...]:
        """Those that are not ours to reset, but do not block."""
        return tuple(each for each in self.affected if not each.owned and not each.blocker)

    @property
    def groups(self) -> tuple[int, ...]:
        """The groups whose files prove ownership, ascending; empty where ownership goes by iommufd."""
        if self.by_dev_id:
            return ()
        return tuple(sorted({each.group for each in self.affected if each.group is not None}))

    @property
    def advice(self) -> tuple[str, ...]:
        """What to do first, one sentence each; empty when the reset is possible."""
        return tuple(self._advice())

    def require(self) -> None:
        """Make sure that the reset is possible.

        Raises:
            ResetBlockedError: a neighbour blocks it.
            NotOwnedError: it affects devices that are not ours.
        """
        if self.blocking:
            culprits = [(str(each.address), each.driver or "") for each in self.blocking]
            reasons = "; ".join(f"{each.address} {each.blocker}" for each in self.blocking)
            raise ResetBlockedError(f"{self.device} can't be hot-reset: {reasons}. {' '.join(self.advice)}", culprits)
        if self.not_owned:
            addresses = [str(each.address) for each in self.not_owned]
            raise NotOwnedError(
                f"a hot reset of {self.device} also resets {', '.join(addresses)}, which this process does not own. "
                f"{' '.join(self.advice)}",
                addresses,
            )

    def to_json(self) -> dict[str, object]:
        """Give it as plain data."""
        return {
            "device": self.device,
            "possible": self.possible,
            "ownership": "iommufd" if self.by_dev_id else "groups",
            "affected": [each.to_json() for each in self.affected],
            "advice": list(self.advice),
        }

    def __str__(self) -> str:
        rows = [("device", "driver", "group", "verdict")]
        for each in self.affected:
            why = f": {each.blocker}" if each.blocker else ""
            group = "-" if each.group is None else str(each.group)
            rows.append((str(each.address), each.driver or "-", group, each.verdict + why))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = ["  ".join([*(row[n].ljust(widths[n]) for n in range(3)), row[3]]) for row in rows]
        head = f"hot reset of {self.device}: {'possible' if self.possible else 'not possible'}"
        return "\n".join([head, *(f"  {line}" for line in lines), *(f"  -> {line}" for line in self.advice)])

    def _advice(self) -> Iterator[str]:
        yield from dict.fromkeys(each.remedy for each in self.blocking)
        missing = [str(each.address) for each in self.not_owned]
        if missing and self.by_dev_id:
            yield f"Open {', '.join(missing)} with the same address space."
        elif missing:
            everything = ", ".join(repr(str(each.address)) for each in self.affected)
            yield f"Open them together: vfio_user.open_all([{everything}])."


def make_plan(name: str, info: HotResetInfo) -> ResetPlan:
    """Make the plan of a device's hot reset from what the kernel says, sysfs, and what this process has open."""
    opened = {each.name for each in open_devices()}
    asked = sysfs.PciFunction(PciAddress.parse(name))
    devices = tuple(_look_at(each, asked, opened) for each in info.functions)
    return ResetPlan(name, info.by_dev_id, devices)


def _look_at(affected: AffectedFunction, asked: sysfs.PciFunction, opened: Iterable[str]) -> AffectedDevice:
    function = sysfs.PciFunction(affected.address)
    group = affected.group if affected.group is not None else function.iommu_group
    owned = affected.owned
    if owned is None:
        owned = affected.group is not None and open_group(affected.group) is not None
    return AffectedDevice(
        affected.address,
        function.driver,
        group,
        affected.dev_id,
        owned,
        str(affected.address) in opened,
        *_blocker(function, asked),
    )


def _blocker(function: sysfs.PciFunction, asked: sysfs.PciFunction) -> tuple[str, str]:
    """Say why the kernel refuses because of a function, and what to do: it must be in the device set of the asked one.

    Source: ``vfio_pci_dev_set_resettable()``, ``vfio_pci_core_register_device()``.
    """
    driver = function.driver
    if function.address == asked.address:
        return "", ""
    if asked.is_virtual:
        return "is reset with it", f"Use reset(): the virtual function {asked.address} can only be reset alone."
    if function.is_virtual:
        return "is a virtual function", f"Take the virtual functions of {asked.address} away first (sriov_numvfs)."
    if driver == "pcieport":
        return "is a bridge", f"Reset what is below {function.address} from a device that has no bridge beside it."
    if driver is None:
        return "is bound to no driver", f"Bind {function.address} to vfio-pci."
    if function.vfio_device is None and "vfio" not in driver:
        return f"is bound to {driver}, not to a VFIO driver", f"Bind {function.address} to vfio-pci."
    return "", ""

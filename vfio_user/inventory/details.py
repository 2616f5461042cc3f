"""Everything about one device: from sysfs, and, when asked for, from the device itself through VFIO."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

from vfio_user.addresses import IovaRange, PciAddress
from vfio_user.device.kinds import kind_name
from vfio_user.errors import MalformedReplyError, VfioError
from vfio_user.inventory.facts import FunctionFacts, describe
from vfio_user.kernel import sysfs
from vfio_user.kernel.ioctl import feature_probe
from vfio_user.kernel.sysfs import PciFunction
from vfio_user.kernel.uapi import DeviceFeature, FeatureOperation
from vfio_user.pci import PciDevice
from vfio_user.pci.decode import Decoded, decode
from vfio_user.pci.frozen import read_config
from vfio_user.session import open as open_device

__all__ = ["Details", "IrqDetails", "RegionDetails", "inspect"]

_REGIONS = ("BAR 0", "BAR 1", "BAR 2", "BAR 3", "BAR 4", "BAR 5", "ROM", "configuration", "VGA")


@dataclass(frozen=True, slots=True)
class RegionDetails:
    """A region as VFIO offers it."""

    index: int
    """Its index."""
    name: str
    """What it is: ``"BAR 0"``."""
    size: int
    """Its size in bytes."""
    flags: tuple[str, ...]
    """What can be done with it: read, write, mmap."""
    mapped: tuple[tuple[int, int], ...]
    """Offset and size of the parts that can be mapped."""


@dataclass(frozen=True, slots=True)
class IrqDetails:
    """A kind of interrupt as VFIO offers it."""

    name: str
    """``"MSI-X"``."""
    count: int
    """Number of vectors."""
    flags: tuple[str, ...]
    """What can be done with it."""


@dataclass(frozen=True, slots=True)
class Details:
    """What is known of one device."""

    facts: FunctionFacts
    """What sysfs says."""
    capabilities: tuple[Decoded, ...] = ()
    """What its configuration space says, decoded."""
    reserved: tuple[tuple[str, str, str], ...] = ()
    """First and last IOVA, and kind, of what the IOMMU reserves in its group."""
    power: str | None = None
    """Power state: ``"D0"``."""
    mode: str | None = None
    """How it was opened; `None` when it was not."""
    regions: tuple[RegionDetails, ...] = ()
    """Its regions; needs opening."""
    irqs: tuple[IrqDetails, ...] = ()
    """Its interrupts; needs opening."""
    features: tuple[str, ...] = ()
    """What VFIO can do with it, beyond the usual; needs opening."""
    iova_ranges: tuple[str, ...] = ()
    """IOVAs that it can reach; needs opening."""
    page_sizes: tuple[int, ...] = ()
    """Page sizes of the IOMMU in bytes; needs opening."""
    hidden: tuple[str, ...] = ()
    """What is not shown, and what would show it."""

    def to_json(self) -> dict[str, object]:
        """Give it as plain data: the fields of `FunctionFacts`, and these."""
        fields = asdict(self) | {"capabilities": [each.to_json() for each in self.capabilities]}
        del fields["facts"]
        fields["reserved"] = [dict(zip(("first", "last", "kind"), each, strict=True)) for each in self.reserved]
        return self.facts.to_json() | fields


def inspect(address: str | PciAddress, *, open: bool = False) -> Details:
    """Say everything about one device.

    Args:
        address: its PCI address.
        open: open it through VFIO, for its regions, interrupts, features and IOVAs. The kernel may reset a device when
            it is opened and when it is closed.

    Raises:
        ArgumentError: not an address, or no such device.
    """
    function = sysfs.pci_function(address)
    facts, hidden = describe(function), list[str]()
    details = Details(facts, reserved=tuple(_reserved(facts.group)), power=_text(function, "power_state"))
    try:
        config = read_config(function.path)
        if config is None or not config.whole:
            hidden.append("capabilities: the kernel shows them to root only")
        else:
            details = replace(details, capabilities=tuple(decode(config)))
    except MalformedReplyError as error:
        hidden.append(f"capabilities: {error}")
    if open:
        try:
            with open_device(function.address, allow_noiommu=True) as pci:
                details = _opened(details, pci)
        except VfioError as error:
            hidden.append(f"regions, interrupts, features, IOVAs: {error}")
    elif not facts.bridge:
        hidden.append("regions, interrupts, features, IOVAs: need opening, which may reset the device (--open)")
    return replace(details, hidden=tuple(each for each in hidden if not each.startswith("capa") or not details.mode))


def _opened(details: Details, pci: PciDevice) -> Details:
    ranges: tuple[IovaRange, ...] = ()
    sizes = 0
    with suppress(VfioError):  # nothing is translated without an IOMMU
        ranges, sizes = pci.address_space.iova_ranges, pci.address_space.page_sizes
    return replace(
        details,
        mode=pci.address_space.mode.value,
        capabilities=tuple(decode(pci.config)),
        regions=tuple(_regions(pci)),
        irqs=tuple(_irqs(pci)),
        features=tuple(_features(pci)),
        iova_ranges=tuple(str(each) for each in ranges),
        page_sizes=tuple(1 << bit for bit in range(64) if sizes >> bit & 1),
    )


def _regions(pci: PciDevice) -> Iterator[RegionDetails]:
    for region in pci.vdev.regions:
        if region is not None:
            info = region.info
            name = _REGIONS[info.index] if info.index < len(_REGIONS) else f"region {info.index}"
            if info.type is not None:
                name = kind_name(*info.type)
            areas = tuple((area.offset, area.size) for area in pci.vdev.ops.mappable_areas(pci.vdev, info))
            yield RegionDetails(info.index, name, info.size, _flags(info.flags, "CAPS"), areas)


def _irqs(pci: PciDevice) -> Iterator[IrqDetails]:
    for irq in pci.vdev.irqs:
        if irq.count:
            yield IrqDetails(irq.label, irq.count, _flags(irq.flags))


def _features(pci: PciDevice) -> Iterator[str]:
    with pci.vdev.user() as fd:
        for feature in DeviceFeature:
            can = [
                operation.name.lower()
                for operation in (FeatureOperation.GET, FeatureOperation.SET)
                if operation.name and feature_probe(fd, feature, operation, device=pci.name)
            ]
            if can:
                yield f"{feature.name.lower()} ({', '.join(can)})"


def _flags(flags: object, *without: str) -> tuple[str, ...]:
    names = str(getattr(flags, "name", "") or "").split("|")
    return tuple(name.lower() for name in names if name and name not in without)


def _reserved(group: int | None) -> Iterator[tuple[str, str, str]]:
    if group is None:
        return
    try:
        lines = (sysfs.SYSFS / f"kernel/iommu_groups/{group}/reserved_regions").read_text(errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        first, last, kind = sysfs.three_words(line)
        yield (hex(sysfs.read_number(first, 16)), hex(sysfs.read_number(last, 16)), kind)


def _text(function: PciFunction, name: str) -> str | None:
    try:
        return (function.path / name).read_text(errors="replace").strip() or None
    except OSError:
        return None

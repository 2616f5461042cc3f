"""What sysfs says of a PCI function, as one value: what ``vfio-user list`` shows, and its JSON."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass

from vfio_user.binding import uses
from vfio_user.binding.state import expected_nodes
from vfio_user.errors import MalformedReplyError, VfioOSError
from vfio_user.kernel import sysfs, topology
from vfio_user.kernel.sysfs import PciFunction
from vfio_user.pci.names import PciNames, load_names

__all__ = ["Bar", "FunctionFacts", "describe", "survey"]

_MEMORY, _PREFETCH, _WIDE = 0x200, 0x2000, 0x100000  # IORESOURCE_… of the kernel
_BARS = 6


@dataclass(frozen=True, slots=True)
class Bar:
    """A base address register, as the kernel has set it up."""

    number: int
    """0 to 5; 6 is the expansion ROM."""
    address: int
    """Where it answers on the bus."""
    size: int
    """Its size in bytes."""
    kind: str
    """``"memory"``, ``"memory, 64 bits"``, ``"I/O"``, with ``", prefetchable"`` where it is."""


@dataclass(frozen=True, slots=True)
class FunctionFacts:
    """One PCI function. The names of these fields are those of the JSON, and stay as they are."""

    address: str
    """Where it sits: ``"0000:01:00.0"``."""
    vendor: int
    """Vendor id."""
    device: int
    """Device id."""
    subsystem_vendor: int | None
    """Vendor id of the board."""
    subsystem_device: int | None
    """Device id of the board."""
    revision: int | None
    """Revision id."""
    class_code: int
    """Class, 24 bits; ``"class"`` in the JSON."""
    vendor_name: str | None
    """Name of the vendor, from the machine's pci.ids."""
    device_name: str | None
    """Name of the device."""
    class_name: str | None
    """Name of the class."""
    driver: str | None
    """Kernel driver."""
    group: int | None
    """IOMMU group."""
    viable: bool
    """Whether the group can be used as it is."""
    iommu: str | None
    """The IOMMU that translates for it: ``"dmar0"``."""
    numa_node: int | None
    """NUMA node that it is attached to."""
    node: str | None
    """Node of its group, when it exists and the function is bound to VFIO."""
    nodes: tuple[str, ...]
    """All VFIO nodes that lead to it and exist."""
    reset_methods: tuple[str, ...]
    """Ways in which the kernel can reset it alone."""
    reset_domain: tuple[str, ...]
    """What a hot reset resets together, itself included."""
    bridge: bool
    """Whether it is a bridge."""
    parent: str | None
    """The bridge that it hangs on."""
    physical_function: str | None
    """Of a virtual function: the one that it belongs to."""
    virtual_functions: int | None
    """Number of virtual functions that are on; `None` where there can't be any."""
    bars: tuple[Bar, ...]
    """Its base address registers."""
    blockers: tuple[str, ...]
    """What keeps it from being bound or opened, in words; empty when nothing does."""

    @property
    def name(self) -> str:
        """Vendor and device by name, or the class, or the ids."""
        if self.device_name:
            return f"{self.vendor_name} {self.device_name}" if self.vendor_name else self.device_name
        what = self.class_name or f"class {self.class_code:06x}"
        return f"{self.vendor_name} {what}" if self.vendor_name else what

    def to_json(self) -> dict[str, object]:
        """Give it as plain data."""
        fields = asdict(self)
        fields["class"] = fields.pop("class_code")
        return fields


def survey() -> tuple[FunctionFacts, ...]:
    """Describe all PCI functions of the machine, ordered by address; those that go away meanwhile are left out."""
    found = []
    for function in sysfs.pci_functions():
        try:
            found.append(describe(function))
        except VfioOSError:
            if function.exists():
                raise
    return tuple(found)


def describe(function: PciFunction, names: PciNames | None = None) -> FunctionFacts:
    """Describe one PCI function. Needs no rights.

    Args:
        function: which one.
        names: names of vendors, devices and classes; the machine's own by default.

    Raises:
        VfioOSError: it went away.
    """
    names = load_names() if names is None else names
    number = function.iommu_group
    group = sysfs.group(number) if number is not None else None
    bridge = topology.parent(function)
    owner = topology.physical_function(function)
    nodes = [path for path, _ in expected_nodes(function) if path.exists()] if function.vfio_device else []
    return FunctionFacts(
        address=str(function.address),
        vendor=function.vendor,
        device=function.device,
        subsystem_vendor=_number(function, "subsystem_vendor"),
        subsystem_device=_number(function, "subsystem_device"),
        revision=_number(function, "revision"),
        class_code=function.class_code,
        vendor_name=names.vendor(function.vendor),
        device_name=names.device(function.vendor, function.device),
        class_name=names.kind(function.class_code),
        driver=function.driver,
        group=number,
        viable=group is not None and not group.culprits,
        iommu=_link(function, "iommu"),
        numa_node=function.numa_node,
        node=next((str(path) for path in nodes if path.name in (str(number), f"noiommu-{number}")), None),
        nodes=tuple(str(path) for path in nodes),
        reset_methods=function.reset_methods,
        reset_domain=tuple(str(each.address) for each in topology.reset_domain(function)),
        bridge=function.is_bridge,
        parent=str(bridge.address) if bridge is not None else None,
        physical_function=str(owner.address) if owner is not None else None,
        virtual_functions=_number(function, "sriov_numvfs", 10),
        bars=_bars(function),
        blockers=_blockers(function),
    )


def _blockers(function: PciFunction) -> tuple[str, ...]:
    if function.is_bridge:
        return ()
    found = [use.what for use in uses(function)]
    number = function.iommu_group
    if number is None:
        found.append("no IOMMU translates for it")
    elif function.vfio_device is not None:
        culprits = sysfs.group(number).culprits
        found += [f"{each.address} ({each.driver}) is in its group" for each in culprits]
    return tuple(found)


def _bars(function: PciFunction) -> tuple[Bar, ...]:
    found = []
    try:
        lines = (function.path / "resource").read_text(errors="replace").splitlines()
    except OSError:
        return ()
    for number, line in enumerate(line for line in lines[: _BARS + 1] if line.strip()):
        start, end, flags = sysfs.read_resource(line)
        if end > start:
            kind = "memory" if flags & _MEMORY else "I/O"
            kind += ", 64 bits" * bool(flags & _WIDE) + ", prefetchable" * bool(flags & _PREFETCH)
            found.append(Bar(number, start, end - start + 1, kind))
    return tuple(found)


def _number(function: PciFunction, name: str, base: int = 16) -> int | None:
    try:
        return sysfs.read_number((function.path / name).read_text(errors="replace").strip(), base, name)
    except (OSError, MalformedReplyError):
        return None


def _link(function: PciFunction, name: str) -> str | None:
    try:
        return os.path.basename(os.readlink(function.path / name))
    except OSError:
        return None

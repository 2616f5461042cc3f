"""Names of vendors, devices and classes, from the machine's own ``pci.ids`` (package pci.ids or hwdata)."""

from __future__ import annotations

import functools
import gzip
import re
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["PATHS", "PciNames", "load_names", "parse_names"]

#: Where distributions keep the file; what the administrator updated comes first.
PATHS = (
    "/var/lib/pciutils/pci.ids",
    "/usr/share/hwdata/pci.ids",
    "/usr/share/misc/pci.ids",
    "/usr/share/misc/pci.ids.gz",
    "/usr/share/pci.ids",
)

_LINE = re.compile(r"(?P<depth>\t{0,2})(?P<id>[0-9a-f]{2,4})(?: (?P<sub>[0-9a-f]{4}))?  (?P<name>.+)")


@dataclass(frozen=True, slots=True)
class PciNames:
    """What the file says; empty when the machine has none."""

    source: str = ""
    """The file that it is from; empty without one."""
    vendors: dict[int, str] = field(default_factory=dict, repr=False)
    """Names of vendors by id."""
    devices: dict[tuple[int, int], str] = field(default_factory=dict, repr=False)
    """Names of devices by vendor and device id."""
    classes: dict[tuple[int, ...], str] = field(default_factory=dict, repr=False)
    """Names of classes by base class, sub-class and programming interface, as far as they have one."""

    def vendor(self, vendor: int) -> str | None:
        """Name a vendor; `None` when it is not known."""
        return self.vendors.get(vendor)

    def device(self, vendor: int, device: int) -> str | None:
        """Name a device; `None` when it is not known."""
        return self.devices.get((vendor, device))

    def kind(self, class_code: int) -> str | None:
        """Name a class by its 24 bits, as precisely as the file does; `None` when it is not known."""
        parts = (class_code >> 16, class_code >> 8 & 0xFF, class_code & 0xFF)
        # The interface alone ("NVM Express") says less than the sub-class with it.
        sub = self.classes.get(parts[:2])
        interface = self.classes.get(parts)
        if sub and interface:
            return f"{sub} ({interface})"
        return sub or self.classes.get(parts[:1])


@functools.cache
def load_names(paths: tuple[str, ...] = PATHS) -> PciNames:
    """Read the first of some files that exists; an empty `PciNames` when none does."""
    for path in paths:
        try:
            data = Path(path).read_bytes()
            text = (gzip.decompress(data) if path.endswith(".gz") else data).decode(errors="replace")
        except (OSError, EOFError):
            continue
        return parse_names(text, path)
    return PciNames()


def parse_names(text: str, source: str = "") -> PciNames:
    """Read the format of ``pci.ids``; lines that are not of it are left out."""
    names = PciNames(source)
    above: tuple[int, ...] = ()
    of_classes = False
    for line in text.splitlines():
        if not line or line[0] == "#":
            continue
        if line[0] != "\t":
            of_classes = line.startswith("C ")
            line = line[2:] if of_classes else line
        found = _LINE.fullmatch(line)
        if found is None:
            continue
        depth, number, name = len(found["depth"]), int(found["id"], 16), found["name"]
        if depth > len(above):
            continue  # below a line that was left out
        above = (*above[:depth], number)
        if of_classes:
            names.classes[above] = name
        elif depth == 0:
            names.vendors[number] = name
        elif depth == 1:
            names.devices[above[0], number] = name
    return names

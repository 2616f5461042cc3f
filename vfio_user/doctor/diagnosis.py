"""Put findings together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vfio_user.addresses import PciAddress
from vfio_user.doctor.device import device_findings
from vfio_user.doctor.limits import limit_findings
from vfio_user.doctor.machine import machine_findings
from vfio_user.findings import Finding, Severity
from vfio_user.kernel import sysfs

__all__ = ["Diagnosis", "explain"]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All that was found. ``str()`` gives it as text, one paragraph for each finding that matters."""

    findings: tuple[Finding, ...]
    """In the order in which they were looked for: the machine first, then the devices."""

    @property
    def severity(self) -> Severity:
        """The worst of them."""
        return max((each.severity for each in self.findings), default=Severity.OK)

    @property
    def ready(self) -> bool:
        """Tell whether nothing is in the way."""
        return self.severity < Severity.ERROR

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Those that are in the way."""
        return tuple(each for each in self.findings if each.severity is Severity.ERROR)

    def to_json(self) -> dict[str, object]:
        """Give it as plain data."""
        return {
            "severity": self.severity.name.lower(),
            "ready": self.ready,
            "findings": [each.to_json() for each in self.findings],
        }

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __str__(self) -> str:
        return "\n".join(f"{each.severity.name.lower()}: {each}" for each in self.findings if each.severity)


def explain(*addresses: str | PciAddress, journal: Path | str | None = None) -> Diagnosis:
    """Look at the machine, and at devices, and say what is in the way of driving them from user space.

    Needs no rights; what can't be seen without them is said. Nothing is opened and nothing changed.

    Args:
        addresses: PCI addresses; none looks at the machine alone.
        journal: folder in which `bind` recorded what it changed, ``/run/vfio-user/journal`` by default.

    Raises:
        ArgumentError: not an address, or no such device.
    """
    functions = [sysfs.pci_function(address) for address in addresses]
    found = [*machine_findings(), *limit_findings()]
    for function in functions:
        found += device_findings(function, journal)
    return Diagnosis(tuple(found))

"""In a guest that does not remap interrupts (``--append intremap=off``): refused, explained, possible when accepted."""

from __future__ import annotations

from pathlib import Path

import pytest

import vfio_user
from vfio_user import testing
from vfio_user.drivers.edu import Edu
from vfio_user.errors import VfioIoctlError
from vfio_user.findings import Severity

UNSAFE = Path("/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts")


def test_it_is_explained() -> None:
    UNSAFE.write_text("N")
    with pytest.raises(VfioIoctlError, match=r"VFIO_SET_IOMMU.*does not remap interrupts.*allow_unsafe_interrupts=1"):
        vfio_user.open(testing.device("edu").address)


def test_it_works_when_the_risk_is_accepted() -> None:
    UNSAFE.write_text("Y")
    with vfio_user.open(testing.device("edu").address) as pci, Edu(pci) as edu, edu.alloc() as buffer:
        assert edu.factorial(7) == 5040
        buffer[:4] = b"virt"
        edu.copy_to_device(buffer[:4])
        edu.copy_from_device(buffer[16:20])
        assert bytes(buffer[16:20]) == b"virt"


@pytest.mark.parametrize(("accepted", "severity"), [("N", Severity.ERROR), ("Y", Severity.WARNING)])
def test_the_doctor_says_it_too(accepted: str, severity: Severity) -> None:
    UNSAFE.write_text(accepted)
    (finding,) = (each for each in vfio_user.explain() if each.key == "interrupts-not-remapped")
    assert (finding.severity, finding.command) == (severity, "vfio_iommu_type1.allow_unsafe_interrupts=1")

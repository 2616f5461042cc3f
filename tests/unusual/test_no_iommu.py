"""In a guest without an IOMMU (``--iommu none --no-bind``): the way to a device is barred, and the error says why."""

from __future__ import annotations

from pathlib import Path

import pytest

import vfio_user
from vfio_user.errors import UnsupportedError, VfioOSError


def test_no_iommu_is_explained() -> None:
    edu = next(each for each in vfio_user.pci_functions() if (each.vendor, each.device) == (0x1234, 0x11E8))
    assert edu.iommu_group is None
    with pytest.raises(UnsupportedError, match=r"no IOMMU is active.*intel_iommu=on.*allow_noiommu=True"):
        vfio_user.open(edu.address)


def test_no_vfio_is_explained() -> None:
    node = Path("/dev/vfio/vfio")
    if node.exists():
        node.rename("/dev/vfio/hidden")
    try:
        with pytest.raises(VfioOSError, match=r"modprobe vfio-pci"):
            vfio_user.AddressSpace()
    finally:
        if Path("/dev/vfio/hidden").exists():
            Path("/dev/vfio/hidden").rename(node)


def test_the_doctor_says_it_too() -> None:
    diagnosis = vfio_user.explain()
    (finding,) = (each for each in diagnosis if each.key == "no-iommu")
    assert "a virtual machine whose hypervisor emulates none" in finding.remedy
    assert not diagnosis.ready

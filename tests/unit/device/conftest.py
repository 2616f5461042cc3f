"""Interrupt vectors, of a device and without one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vfio_user import IrqVector, PciDevice


@pytest.fixture
def vectors(pci: PciDevice) -> tuple[IrqVector, ...]:
    return pci.irqs.msix.enable(4)


@pytest.fixture
def many() -> Iterator[list[IrqVector]]:
    """More than one look of the kernel's gives, and more than there is room for at first."""
    vectors = [IrqVector(number, f"vector {number}") for number in range(300)]
    yield vectors
    for vector in vectors:
        vector._close()

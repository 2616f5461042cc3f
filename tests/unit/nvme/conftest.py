from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.unit.nvme.model import model_device
from vfio_user.drivers.nvme import NvmeController

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.unit.nvme.model import Model
    from vfio_user.pci.device import PciDevice


@pytest.fixture
def device() -> Iterator[tuple[Model, PciDevice]]:
    """A model controller, and the PCI device that it is."""
    with model_device() as pair:
        yield pair


@pytest.fixture(params=[True, False], ids=["interrupts", "polled"])
def setting(
    device: tuple[Model, PciDevice], request: pytest.FixtureRequest
) -> Iterator[tuple[Model, PciDevice, NvmeController]]:
    """The model, its device, and a running controller with an I/O queue of 16 entries."""
    model, pci = device
    with NvmeController(pci, io_entries=16, interrupts=request.param) as ctrl:
        yield model, pci, ctrl

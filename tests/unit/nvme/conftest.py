from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.unit.nvme.model import model_device

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.unit.nvme.model import Model
    from vfio_user.pci.device import PciDevice


@pytest.fixture
def device() -> Iterator[tuple[Model, PciDevice]]:
    """A model controller, and the PCI device that it is."""
    with model_device() as pair:
        yield pair

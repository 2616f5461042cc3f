"""An address space over a back end in memory, with one device attached."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.iommu.fake_backend import FakeBackend
from vfio_user.addresses import PciAddress
from vfio_user.iommu import AddressSpace, address_space
from vfio_user.kernel.sysfs import PciFunction


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> FakeBackend:
    backend = FakeBackend()
    monkeypatch.setattr(address_space, "open_backend", lambda mode: backend)
    return backend


@pytest.fixture
def space(backend: FakeBackend) -> Iterator[AddressSpace]:
    """Its device stays attached, so the back end is closed with the last line here."""
    with AddressSpace("type1v2") as space:
        device = space.attach(PciFunction(PciAddress(0, 1, 0, 0)))
        yield space
    device.close()
    space.detach()
    assert backend.closed

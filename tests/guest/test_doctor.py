"""The doctor on a real kernel: nothing wrong with the guest's devices, and what is wrong when something is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import vfio_user
from vfio_user import testing
from vfio_user.findings import Severity


@pytest.fixture
def unbound() -> Iterator[str]:
    """One of two functions that share a group, without a driver."""
    address = testing.devices("edu")[2].address
    driver = Path(f"/sys/bus/pci/devices/{address}/driver")
    (driver / "unbind").write_text(address)
    yield address
    Path("/sys/bus/pci/drivers_probe").write_text(address)


def keys(*addresses: str) -> dict[str, Severity]:
    return {each.key: each.severity for each in vfio_user.explain(*addresses)}


def test_nothing_is_in_the_way_of_the_guests_devices() -> None:
    diagnosis = vfio_user.explain(*(each.address for each in testing.devices()))
    print(diagnosis)
    assert diagnosis.ready, diagnosis
    found = {each.key for each in diagnosis if each.severity is Severity.OK}
    assert {"vfio-pci", "iommu", "interrupts-remapped", "memlock", "bound", "group", "nodes", "reset"} <= found
    assert diagnosis.to_json()["ready"] is True


def test_what_it_says_of_a_device_can_be_done(unbound: str) -> None:
    (finding,) = vfio_user.explain(unbound).errors
    assert finding.command == f"vfio-user bind {unbound}"
    sibling = testing.devices("edu")[1].address
    (blocked,) = (each for each in vfio_user.explain(sibling) if each.key == "reset-blocked")
    assert blocked.what.startswith(f"a hot reset of {sibling} is blocked by {unbound}")
    with vfio_user.bound(unbound):
        assert keys(unbound)["recorded"] is Severity.NOTE
        assert vfio_user.explain(unbound).ready
        assert "reset-blocked" not in keys(sibling)


def test_open_devices_and_foreign_nodes() -> None:
    edu = testing.devices("edu")[0]
    with vfio_user.open(edu.address):
        assert keys(edu.address)["open-elsewhere"] is Severity.WARNING
    pid = os.fork()
    if pid == 0:
        os.setresuid(65534, 65534, 65534)
        found = vfio_user.explain(edu.address).errors
        told = len(found) == 1 and found[0].command == f"vfio-user bind {edu.address} --user $USER"
        os._exit(0 if told and keys(edu.address)["memlock"] in (Severity.OK, Severity.WARNING) else 1)
    assert os.waitpid(pid, 0)[1] == 0


def test_bridges() -> None:
    bridge = next(each for each in vfio_user.pci_functions() if each.is_bridge and each.driver == "pcieport")
    assert keys(str(bridge.address))["bridge"] is Severity.ERROR

"""A machine with an edu-like device of the kernel's driver, alone in group 7, and two functions in group 9."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.binding.fake_bus import FakeBus

DEVICE, FIRST, SECOND = "0000:01:00.0", "0000:02:00.0", "0000:02:00.1"


@pytest.fixture
def bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeBus:
    return machine(tmp_path, monkeypatch)


def machine(root: Path, monkeypatch: pytest.MonkeyPatch) -> FakeBus:
    """Make the machine anew."""
    bus = FakeBus(root, monkeypatch)
    bus.driver("vfio-pci", "edu", "snd", "nic")
    bus.add_function(DEVICE, "edu", group=7)
    bus.add_function(FIRST, "nic", group=9)
    bus.add_function(SECOND, "snd", group=9)
    bus.add_function("0000:00:1c.0", "pcieport", group=9, ids=(0x8086, 1, 0x060400))
    return bus

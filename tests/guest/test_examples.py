"""Every example runs as it says, and prints what a reader expects."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vfio_user import testing

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RUNS = {
    "list_devices.py": ((), "1234:11e8"),
    "edu_factorial.py": (("edu",), "3628800"),
    "live_update.py": (("edu",), "has copied b'hello' meanwhile\nand has interrupts again: 10! = 3628800"),
    "sriov.py": (("igb0",), ", with an address space of its own: memory at 0x"),
    "hot_reset.py": (("edu",), "0x010000ed before, 0x010000ed after"),
    "asyncio_interrupts.py": (("edu",), "3 in all"),
    "nvme_identify.py": (("nvme",), "VU-nvme0"),
    "broker_and_driver.py": (("edu",), "user 65534: register 0 of"),
    "nvme_read_write.py": (("nvme",), "equal"),
    "packet_generator.py": (("igb0", "igb1"), "every byte right"),
    "virtio_block.py": (("virtio-blk",), "equal"),
    "mtty_loopback.py": ((), "says b'hello, serial line"),
    "mtty_migrate.py": ((), "says b'not read yet'"),
}
#: Those that need the kernel's samples of mediated devices.
NEED_MDEV = {name for name in RUNS if name.startswith("mtty")} if not os.path.exists("/sys/class/mdev_bus") else set()
SWITCH = Path("/sys/module/vfio_pci/parameters/enable_sriov")


@pytest.fixture
def virtual_functions() -> Iterator[None]:
    """Let vfio-pci make virtual functions."""
    SWITCH.write_text("1")
    yield
    SWITCH.write_text("0")


@pytest.mark.parametrize("name", sorted({path.name for path in EXAMPLES.glob("*.py")} - NEED_MDEV))
def test_example(name: str, virtual_functions: None) -> None:
    kinds, expected = RUNS[name]
    addresses = [testing.device(kind).address for kind in kinds]
    done = subprocess.run([sys.executable, EXAMPLES / name, *addresses], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout


def test_readme_driver_runs(tmp_path: Path) -> None:
    readme = (EXAMPLES.parent / "README.md").read_text()
    driver = tmp_path / "driver.py"
    driver.write_text(readme.split("```python\n")[1].split("```")[0])
    done = subprocess.run(
        [sys.executable, driver, testing.device("edu").address], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "10! = 3628800" in done.stdout


def test_list_shows_what_is_bound() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vfio_user.cli", "list", "--vfio", "--json"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    for device in testing.devices():
        assert f'"{device.address}"' in done.stdout

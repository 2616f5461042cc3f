"""pci.ids: what its lines mean, and lines that mean nothing."""

from __future__ import annotations

import gzip
from pathlib import Path

from vfio_user.pci.names import PciNames, load_names, parse_names

TEXT = """\
# a comment
8086  Intel Corporation
\t1533  I210 Gigabit Network Connection
\t\t103c 0003  Ethernet I210-T1 GbE NIC
\t10c9  82576 Gigabit Network Connection
nonsense
\t\tmore of it
1234  Somebody

C 01  Mass storage controller
\t08  Non-Volatile memory controller
\t\t02  NVM Express
C 02  Network controller
\t00  Ethernet controller
C 00  Unclassified device
ffff  Illegal Vendor ID
"""


def test_names() -> None:
    names = parse_names(TEXT, "here")
    assert names.source == "here"
    assert (names.vendor(0x8086), names.vendor(0xFFFF), names.vendor(1)) == (
        "Intel Corporation",
        "Illegal Vendor ID",
        None,
    )
    assert names.device(0x8086, 0x1533) == "I210 Gigabit Network Connection"
    assert names.device(0x8086, 0x10C9) == "82576 Gigabit Network Connection"
    assert names.device(0x1234, 0x1533) is None
    assert names.kind(0x010802) == "Non-Volatile memory controller (NVM Express)"
    assert names.kind(0x020000) == "Ethernet controller"
    assert names.kind(0x018000) == "Mass storage controller"
    assert names.kind(0x00FF00) == "Unclassified device"
    assert names.kind(0xFF0000) is None


def test_first_file_that_is_there(tmp_path: Path) -> None:
    packed = tmp_path / "pci.ids.gz"
    packed.write_bytes(gzip.compress(TEXT.encode()))
    broken = tmp_path / "broken.gz"
    broken.write_bytes(b"\x1f\x8bnothing")
    found = load_names((str(tmp_path / "none"), str(broken), str(packed)))
    assert found.vendor(0x1234) == "Somebody"
    assert load_names((str(tmp_path / "none"),)) == PciNames()


def test_the_machines_own_file() -> None:
    names = load_names()
    assert names.source
    assert names.vendor(0x8086) == "Intel Corporation"
    assert names.kind(0x060400) == "PCI bridge (Normal decode)"

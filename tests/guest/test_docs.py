"""The documentation's programs and commands run as they stand, with the devices that they name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.snippets import TOP, blocks, pages
from vfio_user import testing

#: What the pages call their devices; the guest's slots get their buses in this order.
NAMED = {
    **{"edu0": "0000:01:00.0", "nvme0": "0000:02:00.0", "edu1": "0000:03:00.0", "edu2": "0000:03:00.1"},
    **{"igb0": "0000:07:00.0", "igb1": "0000:07:00.1", "virtio-blk0": "0000:09:00.0"},
}
#: The README's pieces take names for granted, and its commands are for a person's machine.
PAGES = [page for page in pages() if page.name != "README.md"]
PROGRAMS = [page for page in PAGES if blocks(page, "python")]
SCRIPTS = [page for page in PAGES if blocks(page, "sh")]
#: What the README's pieces, but for its first program, take for granted, and what they leave to be done.
BEFORE = f"""
import numpy
import vfio_user
from vfio_user import testing
from vfio_user.device.regmap import Register, RegisterMap
from vfio_user.device.regvalue import Field, RegisterValue
from vfio_user.drivers.nvme import NvmeController
pci = vfio_user.open("{NAMED["edu0"]}")
address, lbas = "{NAMED["nvme0"]}", numpy.arange(32, dtype="<u8") * 8
"""
AFTER = """
assert regs.factorial.read() == 3628800
assert 1 <= count <= 32
pci.close()
test_my_driver(testing.device)
"""


def name_of(page: Path) -> str:
    return str(page.relative_to(TOP))


def run(command: list[str]) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env={**os.environ, "PATH": path})
    print(done.stdout)
    assert done.returncode == 0, done.stderr


def test_devices_are_where_the_pages_have_them() -> None:
    assert {name: testing.device(name).address for name in NAMED} == NAMED


@pytest.mark.parametrize("page", PROGRAMS, ids=name_of)
def test_program(page: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("\n".join(blocks(page, "python")))
    run([sys.executable, str(program)])


def test_pieces_of_the_readme(tmp_path: Path) -> None:
    pieces = blocks(TOP / "README.md", "python")[1:]
    assert len(pieces) == 3
    program = tmp_path / "program.py"
    program.write_text("\n".join([BEFORE, *pieces, AFTER]))
    run([sys.executable, str(program)])


@pytest.mark.parametrize("page", SCRIPTS, ids=name_of)
def test_commands(page: Path) -> None:
    run(["sh", "-euc", "\n".join(blocks(page, "sh"))])

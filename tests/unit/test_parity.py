"""The table of `tests/PARITY.md`: every row names tests, and every test that it names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def rows() -> list[list[str]]:
    lines = (TOP / "tests/PARITY.md").read_text().splitlines()
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return found[2:]


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0].replace("`", ""))
def test_row_names_tests_that_exist(row: list[str]) -> None:
    assert len(row) == 3
    named = NAMED.findall(row[2])
    assert named, "a behaviour that none of our tests checks"
    assert NAMED.sub("", row[2]).strip() == "", "something else than names of tests"
    for file, name in named:
        functions = [
            each.name for each in ast.parse((TOP / file).read_text()).body if isinstance(each, ast.FunctionDef)
        ]
        assert name in functions, f"there is no {name} in {file}"


def test_no_program_of_the_kernel_is_left_out() -> None:
    text = (TOP / "tests/PARITY.md").read_text()
    for program in (
        "vfio_dma_mapping_test",
        "vfio_dma_mapping_mmio_test",
        "vfio_iommufd_setup_test",
        "vfio_pci_device_test",
        "vfio_pci_device_init_perf_test",
        "vfio_pci_driver_test",
        "vfio_pci_sriov_uapi_test",
    ):
        assert f"`{program}`" in text

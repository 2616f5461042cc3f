"""The table of what is tried where: whole, and as the script makes it."""

from __future__ import annotations

import pytest

from tests import uapi_table
from tests.uapi_record import name_of, rows
from vfio_user.kernel.ioctl import requests
from vfio_user.kernel.uapi import DeviceFeature


def test_every_request_is_a_row() -> None:
    text = uapi_table.TABLE.read_text()
    assert uapi_table.make(uapi_table.read(text)) == text
    found = {line.split("`")[1] for line in text.splitlines() if line.startswith("| `")}
    assert found == set(rows())
    assert set(vars(requests)) <= found
    assert {f"VFIO_DEVICE_FEATURE {each.name}" for each in DeviceFeature} <= found


def test_cells_survive_a_lane_that_did_not_run() -> None:
    cells = {"guest-6.1": {"VFIO_SET_IOMMU": "all"}, "guest-iommu": {"IOMMU_DESTROY": "iommufd"}}
    assert uapi_table.read(uapi_table.make(cells)) == cells


def test_modes_in_few_words() -> None:
    assert uapi_table.cell(["-"], {"type1"}) == "yes"
    assert uapi_table.cell(["-", "type1", "type1v2"], {"type1", "type1v2"}) == "all"
    assert uapi_table.cell(["type1v2", "-"], {"type1", "type1v2"}) == "type1v2"
    assert uapi_table.cell(["type1", "type1v2"], {"type1", "type1v2", "iommufd"}) == "containers"


@pytest.mark.parametrize(
    "name",
    [
        *("VFIO_IOMMU_MAP_DMA", "VFIO_DEVICE_PCI_HOT_RESET", "VFIO_DEVICE_IOEVENTFD", "IOMMU_IOAS_MAP_FILE"),
        *("VFIO_DEVICE_FEATURE MIGRATION", "VFIO_DEVICE_FEATURE DMA_BUF", "IOMMU_IOAS_NOIOMMU_GET_PA"),
    ],
)
def test_what_tests_try_is_in_the_table(name: str) -> None:
    cells = uapi_table.read(uapi_table.TABLE.read_text())
    assert any(cells[lane].get(name) for lane in cells)


def test_same_number_on_another_file() -> None:
    number = requests.VFIO_IOMMU_MAP_DMA.number
    assert number == requests.VFIO_DEVICE_PCI_HOT_RESET.number
    assert name_of("/dev/vfio/vfio", number) == "VFIO_IOMMU_MAP_DMA"
    assert name_of("/dev/iommu", number) == "VFIO_IOMMU_MAP_DMA"
    assert name_of("/dev/vfio/devices/vfio0", number) == "VFIO_DEVICE_PCI_HOT_RESET"
    assert name_of("anon_inode:[vfio-device]", number) == "VFIO_DEVICE_PCI_HOT_RESET"
    assert name_of("/dev/vfio/noiommu-0", requests.VFIO_GROUP_GET_STATUS.number) == "VFIO_GROUP_GET_STATUS"
    assert name_of("anon_inode:[mtty_mig]", requests.VFIO_MIG_GET_PRECOPY_INFO.number) == "VFIO_MIG_GET_PRECOPY_INFO"
    assert name_of("/dev/iommu", requests.IOMMU_DESTROY.number) == "IOMMU_DESTROY"
    assert name_of("/dev/vfio/vfio", requests.VFIO_IOMMU_SPAPR_TCE_GET_INFO.number) == "VFIO_IOMMU_GET_INFO"
    assert name_of("/dev/null", 1) is None

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

import ioctl_opt
import pytest

from tests.uapi import facts
from vfio_user._uapi import lib
from vfio_user.kernel.ioctl import Request, requests

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.timeout(600)  # the first run fetches package lists and headers

#: Macros of migration protocol 1 that take an argument: they compute, they declare nothing.
FUNCTIONS = {"VFIO_DEVICE_STATE_VALID", "VFIO_DEVICE_STATE_IS_ERROR", "VFIO_DEVICE_STATE_SET_ERROR"}


def test_every_declaration_is_the_kernels(kernel: facts.Facts, ours: facts.Facts) -> None:
    assert facts.differences(kernel, ours) == []


def test_the_comparison_covers_the_whole_uapi(kernel: facts.Facts) -> None:
    # Floors, so that a parser which finds nothing does not compare nothing: 7.3 has this many.
    assert len(kernel.constants) >= 321
    assert len(kernel.sizes) >= 98
    assert sum(len(fields) for fields in kernel.fields.values()) >= 416
    assert len(kernel.enums) >= 24
    assert len(kernel.requests) >= 56
    assert len(kernel.texts) == 5
    for newest in ("VFIO_DEVICE_FEATURE_ZPCI_ERROR", "VFIO_PRECOPY_INFO_REINIT", "IOMMU_IOAS_NOIOMMU_GET_PA"):
        assert newest in kernel.constants


def test_no_macro_with_arguments_is_new(kernel: facts.Facts) -> None:
    assert kernel.functions == FUNCTIONS


def test_request_numbers_are_those_of_ioctl_opt(kernel: facts.Facts) -> None:
    for name, (kind, number) in kernel.requests.items():
        assert getattr(lib, name) == ioctl_opt.IO(kind, number), name


def test_requests_has_every_request_and_no_other(kernel: facts.Facts) -> None:
    have = {name: request for name, request in vars(requests).items() if isinstance(request, Request)}
    assert have.keys() == kernel.requests.keys()
    for name, request in have.items():
        assert request == Request(name, getattr(lib, name))


def _replace(old: str, new: str) -> Callable[[str], str]:
    def edit(text: str) -> str:
        changed, count = re.subn(old, new, text, count=1)
        assert count == 1, f"{old} is not in the header any more"
        return changed

    return edit


DRIFT = {
    "constant": (
        "vfio.h",
        _replace(r"(VFIO_REGION_INFO_FLAG_MMAP\s+\(1 <<) 2", r"\1 5"),
        "constant VFIO_REGION_INFO_FLAG_MMAP: the kernel has 32, we declare 4",
    ),
    "request": (
        "vfio.h",
        _replace(r"(VFIO_DEVICE_SET_IRQS\s+_IO\(VFIO_TYPE, VFIO_BASE \+) 10", r"\1 99"),
        f"constant VFIO_DEVICE_SET_IRQS: the kernel has {0x3B00 + 199}, we declare {0x3B00 + 110}",
    ),
    "new constant": (
        "iommufd.h",
        _replace(r"\Z", "\n#define IOMMU_BRAND_NEW (1 << 3)\n"),
        "constant IOMMU_BRAND_NEW: the kernel has it, we do not declare it",
    ),
    "new struct": (
        "vfio_ccw.h",
        _replace(r"(#endif\s*)\Z", r"struct ccw_brand_new { __u32 a; };\n\1"),
        "size of struct ccw_brand_new: the kernel has it, we do not declare it",
    ),
    "new field in padding": (
        "vfio.h",
        _replace(r"(struct vfio_iommu_type1_info_cap_migration \{[^}]*?__u32\s+flags;)", r"\1 __u32 brand_new;"),
        "field of struct vfio_iommu_type1_info_cap_migration: brand_new: the kernel has it, we do not declare it",
    ),
    "renamed field": (
        "iommufd.h",
        _replace(r"(struct iommu_ioas_map \{[^}]*?__u32\s+)ioas_id", r"\1space_id"),
        "field of struct iommu_ioas_map: ioas_id: we declare it, the kernel does not have it",
    ),
    "swapped fields": (
        "iommufd.h",
        _replace(r"(struct iommu_ioas_unmap \{[^}]*)(__aligned_u64 iova;)\s+(__aligned_u64 length;)", r"\1\3\2"),
        "field of struct iommu_ioas_unmap: iova: the kernel has Field(offset=16, size=8), "
        "we declare Field(offset=8, size=8)",
    ),
    "longer array": (
        "vfio_ccw.h",
        _replace(r"IRB_AREA_SIZE 96", "IRB_AREA_SIZE 128"),
        "field of struct ccw_io_region: irb_area: the kernel has Field(offset=24, size=128), "
        "we declare Field(offset=24, size=96)",
    ),
    "element of a flexible array": (
        "vfio.h",
        _replace(r"__s32(\s+group_fds\[\])", r"__u64\1"),
        "field of struct vfio_pci_hot_reset: group_fds: the kernel has Field(offset=16, size=8), "
        "we declare Field(offset=12, size=4)",
    ),
    "new enumerator": (
        "iommufd.h",
        _replace(r"(IOMMU_HW_CAP_PCI_PASID_EXEC = 1 << 1,)", r"\1 IOMMU_HW_CAP_BRAND_NEW = 1 << 9,"),
        "constant IOMMU_HW_CAP_BRAND_NEW: the kernel has it, we do not declare it",
    ),
    "text": (
        "vfio.h",
        _replace(r'"vfio-ap"', '"vfio-app"'),
        "text VFIO_DEVICE_API_AP_STRING: the kernel has vfio-app, we declare vfio-ap",
    ),
}


@pytest.mark.parametrize("name", DRIFT)
def test_drift_is_found(name: str, include: Path, ours: facts.Facts, tmp_path: Path) -> None:
    header, edit, complaint = DRIFT[name]
    copy = tmp_path / "include"
    shutil.copytree(include, copy, ignore=_only_what_the_headers_need, symlinks=True)
    path = copy / "linux" / header
    path.write_text(edit(path.read_text()))
    assert complaint in facts.differences(facts.of_headers(copy, tmp_path), ours)


def _only_what_the_headers_need(folder: str, names: list[str]) -> list[str]:
    if folder.endswith("/linux"):
        wanted = {*facts.HEADERS, "types.h", "posix_types.h", "stddef.h", "compiler_types.h", "ioctl.h"}
        return [name for name in names if name not in wanted]
    return [name for name in names if name != "linux" and folder.endswith("/include")]

"""Corners, in a guest of their own: virtual functions, reported errors, pages of 1 GiB, the kernel's mock IOMMU.

``vfio-user guest --kernel feature --memory 4G --append "hugepagesz=1G hugepages=1" --device nvme,vfs=4,size=64M
--device edu,dma_mask=0xffffffffffffffff --device virtio-net,aer=on --device igb``
"""

from __future__ import annotations

from tests.guest.conftest import pytest_generate_tests
from vfio_user.testing import in_guest

__all__ = ["pytest_generate_tests"]

if not in_guest():
    collect_ignore_glob = ["test_*.py"]

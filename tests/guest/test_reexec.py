"""A process is replaced while its device works: the next program finds memory, IOVAs and the device as they were."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vfio_user.errors import MalformedReplyError
from vfio_user.handover import resume
from vfio_user.testing import GuestDevice

Find = Callable[[str], GuestDevice]
CARRIER = Path(__file__).with_name("carrier.py")
TOP = CARRIER.parents[2]


@pytest.mark.timeout(240)
def test_memory_and_device_outlive_the_program(vfio_device: Find, iommu_mode: str) -> None:
    command = [sys.executable, str(CARRIER), "first", vfio_device("edu").address, iommu_mode]
    environment = os.environ | {"PYTHONPATH": str(TOP), "PYTHONWARNINGS": "ignore::ResourceWarning"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == ""


def test_file_that_says_nothing_of_the_kind() -> None:
    rows = (b'"files": [], "buffers": [{}]', b'"files": ["x"], "buffers": []', b'"files": [9999], "buffers": []')
    for text in (b"", b"[]", *(b"{%s}" % row for row in rows)):
        fd = os.memfd_create("carried")
        os.write(fd, text)
        with pytest.raises(MalformedReplyError, match="carried over"):
            resume(fd)
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)

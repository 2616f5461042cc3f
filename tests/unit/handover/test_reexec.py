"""What is carried over an ``exec``: a file that somebody else wrote is refused, and nothing of it stays open."""

from __future__ import annotations

import json
import os

import pytest

from vfio_user.errors import MalformedReplyError
from vfio_user.handover import resume


def test_file_that_says_nothing_of_the_kind() -> None:
    rows = (b'"files": [], "buffers": [{}]', b'"files": ["x"], "buffers": []', b'"files": [9999], "buffers": []')
    for text in (b"", b"[]", *(b"{%s}" % row for row in rows)):
        fd = os.memfd_create("carried")
        os.write(fd, text)
        with pytest.raises(MalformedReplyError, match="carried over"):
            resume(fd)
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)


def test_files_that_make_no_devices_are_closed() -> None:
    row = {"name": "ring", "iova": 0, "size": 4096, "backing": "memfd"}
    for parcel, change in (({}, {}), ({"mode": "iommufd"}, {}), ({}, {"backing": "paper"})):
        control, memory, note = (os.memfd_create("carried") for _ in range(3))
        fields = {"files": [control], "buffers": [row | {"fd": memory} | change], "parcel": parcel}
        os.write(note, json.dumps(fields).encode())
        with pytest.raises(MalformedReplyError, match=r"no parcel|makes no sense"):
            resume(note)
        for fd in (control, memory, note):
            with pytest.raises(OSError, match="Bad file"):
                os.fstat(fd)

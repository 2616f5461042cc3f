"""The garbage collector and views of DMA memory in reference cycles: Python before 3.13 crashed there."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import gc, mmap
from vfio_user import DmaSlice, Iova

def cycle():
    part = DmaSlice(memoryview(mmap.mmap(-1, 4096))[10:20], Iova(0))
    view = memoryview(part)
    view[0] = 7
    try:
        raise ValueError
    except ValueError as error:
        kept = error  # the traceback refers to this frame, and the frame to the error
    return bytes(part)[0]

for _ in range(5):
    assert cycle() == 7
    gc.collect()
print("survived")
"""


def test_views_in_cycles_are_collected() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=50)
    assert done.stdout == "survived\n", (done.returncode, done.stderr)

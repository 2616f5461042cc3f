"""Count what a test could leave behind: descriptors, mappings of device memory, pinned pages."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vfio_user._mmio import Window

# What the first window of a process sets up stays: the file of ones, the fault handler.
Window(4096).close()


@dataclass(frozen=True)
class Census:
    """What this process holds."""

    fds: tuple[str, ...]
    device_mappings: int
    pinned_kib: int


def census() -> Census:
    """Count now."""
    gc.collect()
    names = []
    for entry in os.listdir("/proc/self/fd"):
        try:
            names.append(os.readlink(f"/proc/self/fd/{entry}"))
        except FileNotFoundError:
            continue  # the descriptor of the listing itself
    maps = Path("/proc/self/maps").read_text().splitlines()
    status = Path("/proc/self/status").read_text().splitlines()
    pinned = sum(int(line.split()[1]) for line in status if line.startswith(("VmPin:", "VmLck:")))
    return Census(tuple(sorted(names)), sum("vfio" in line and "vfio_user" not in line for line in maps), pinned)


@contextmanager
def nothing_left() -> Iterator[None]:
    """Make sure that the block leaves nothing behind."""
    before = census()
    yield
    after = census()
    assert after == before, f"before {before}, after {after}"

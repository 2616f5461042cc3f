"""What the NVMe tests share: a controller on the emulated device, and a way to make that device slow."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import vfio_user
from vfio_user import PciDevice
from vfio_user.drivers.nvme import NvmeController
from vfio_user.testing import GuestDevice, hmp

__all__ = ["Find", "controller", "slow_disk"]

Find = Callable[[str], GuestDevice]


@contextlib.contextmanager
def controller(find: Find, mode: str = "auto", **options: object) -> Iterator[tuple[PciDevice, NvmeController]]:
    """Open the guest's first NVMe device and bring it up."""
    with (
        vfio_user.open(find("nvme").address, mode=mode) as pci,
        NvmeController(pci, **options) as ctrl,  # type: ignore[arg-type]  # the tests' own keywords
    ):
        yield pci, ctrl


@contextlib.contextmanager
def slow_disk(name: str = "nvme0") -> Iterator[None]:
    """Let the emulated disk do one command a second, so that commands stay in flight."""
    _throttle(name, 1)
    try:
        yield
    finally:
        _throttle(name, 0)


def _throttle(name: str, commands_per_second: int) -> None:
    answer = hmp(f"block_set_io_throttle {name} 0 0 0 {commands_per_second} 0 0")
    assert not answer.strip(), answer

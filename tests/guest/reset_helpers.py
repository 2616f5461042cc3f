"""What tests of resets share: ways to look into a reset from inside, and to occupy a memory lock."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence

import vfio_user
from vfio_user import PciDevice, Region, VfioDevice, container_of
from vfio_user.device import DeviceOps
from vfio_user.testing import GuestDevice

__all__ = ["Find", "Recorder", "acting", "busy_reader", "registers"]

Find = Callable[[str], GuestDevice]


def acting(
    reset: Callable[[PciDevice], None] | None = None,
    reset_set: Callable[[PciDevice, Sequence[int]], None] | None = None,
) -> DeviceOps:
    """Make ops that do something of their own in place of the kernel's resets."""
    ops = dataclasses.replace(vfio_user.PCI_OPS, name="acting")
    if reset is not None:

        def act(vdev: VfioDevice) -> None:
            reset(container_of(vdev, PciDevice.vdev))

        ops = dataclasses.replace(ops, reset=act)
    if reset_set is not None:

        def act_on_set(vdev: VfioDevice, group_fds: Sequence[int]) -> None:
            reset_set(container_of(vdev, PciDevice.vdev), group_fds)

        ops = dataclasses.replace(ops, reset_set=act_on_set)
    return ops


class Recorder:
    """A driver that notes what it is told, and raises where a test says so."""

    def __init__(self, pci: PciDevice, calls: list[str]) -> None:
        self.pci = pci
        self.calls = calls
        self.raises: dict[str, BaseException] = {}
        pci.driver = self

    def reset_prepare(self) -> None:
        self._called("prepare")

    def reset_done(self) -> None:
        self._called("done")

    def _called(self, what: str) -> None:
        window = self.pci.vdev.window
        assert window is not None
        assert not window.write_locked(), "no memory lock is held where a driver is called"
        self.calls.append(f"{what} {self.pci.name}")
        if what in self.raises:
            raise self.raises[what]


@contextlib.contextmanager
def busy_reader(bar: Region) -> Iterator[int]:
    """Let another thread sit in a read section; gives its thread id."""
    entered, leave = threading.Event(), threading.Event()
    tid: list[int] = []

    def sit() -> None:
        with bar.access():
            tid.append(threading.get_native_id())
            entered.set()
            leave.wait(30)

    thread = threading.Thread(target=sit)
    thread.start()
    try:
        assert entered.wait(5)
        yield tid[0]
    finally:
        leave.set()
        thread.join(10)


def registers(pci: PciDevice) -> tuple[int, tuple[int, ...], int]:
    """Give what of the configuration must survive: COMMAND, BARs, interrupt line."""
    config = pci.config
    return int(config.command), config.bars, config.interrupt_line

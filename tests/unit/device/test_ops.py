"""Ops tables: a variant driver replaces single ops and calls the core for the rest."""

from __future__ import annotations

import dataclasses
import errno
import os
from typing import Any

import pytest

import vfio_user
from tests.unit.conftest import ADDRESS
from tests.unit.fake_device import CONFIG, FakeDevice
from tests.unit.fake_kernel import FakeKernel
from vfio_user import PCI_OPS, DeviceOps, Embedded, PciDevice, VfioDevice, container_of
from vfio_user._uapi import lib
from vfio_user.device import CORE_OPS
from vfio_user.device.info import RegionInfo
from vfio_user.errors import UnsupportedError, VfioIoctlError, VfioOSError

OPS = [field.name for field in dataclasses.fields(DeviceOps) if field.name not in ("name", "reset_set")]
"""All but the reset of a whole set, which needs a kernel that can do one."""


def test_variant_sits_on_the_core(device: FakeDevice) -> None:
    """Flush firmware before a reset, hide a BAR, note every write: as variant drivers of the kernel do."""
    notes: list[object] = []

    def reset(vdev: VfioDevice) -> None:
        notes.append(("flush", container_of(vdev, PciDevice.vdev)))
        PCI_OPS.reset(vdev)

    def region_info(vdev: VfioDevice, index: int) -> RegionInfo:
        info = PCI_OPS.region_info(vdev, index)
        return dataclasses.replace(info, size=0) if index == 2 else info

    def write(vdev: VfioDevice, file_offset: int, data: bytes) -> None:
        notes.append(("write", file_offset & 0xFFFF, data))
        PCI_OPS.write(vdev, file_offset, data)

    ops = dataclasses.replace(PCI_OPS, name="variant", reset=reset, region_info=region_info, write=write)
    device.regions[2] = device.regions[0]
    with vfio_user.open(ADDRESS, mode="type1v2", ops=ops) as pci:
        assert [bar is not None for bar in pci.bars] == [True, False, False, False, False, False]
        pci.set_master(True)
        assert notes.pop() == ("write", 4, b"\7\0")
        pci.reset()
        assert ("flush", pci) in notes
        assert device.resets == 1
        assert repr(pci.vdev) == f"<VfioDevice {ADDRESS} variant registered>"


@pytest.mark.parametrize("name", OPS)
def test_every_op_can_be_replaced_and_called_through(device: FakeDevice, name: str) -> None:
    calls = 0
    core = getattr(PCI_OPS, name)

    def counted(*args: object) -> object:
        nonlocal calls
        calls += 1
        return core(*args)

    replaced: dict[str, Any] = {name: counted}
    with vfio_user.open(ADDRESS, mode="type1v2", ops=dataclasses.replace(PCI_OPS, **replaced)) as pci:
        pci.config.command = pci.config.command
        with pci.irqs.msi.enable():
            pass
        pci.reset()
    assert calls > 0


def test_tables_are_values() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PCI_OPS.reset = CORE_OPS.reset  # type: ignore[misc]
    assert PCI_OPS.read is CORE_OPS.read


def test_outer_object_of_a_bus_of_ones_own(device: FakeDevice) -> None:
    class Board:
        vdev = Embedded["Board", VfioDevice]()

        def __init__(self, vdev: VfioDevice) -> None:
            self.vdev = vdev

    with vfio_user.AddressSpace("type1v2") as space:
        fd = space.attach(vfio_user.pci_function(ADDRESS))
        board = Board(VfioDevice("board", CORE_OPS, fd, space))
        assert container_of(board.vdev, Board.vdev) is board
        with pytest.raises(TypeError, match=r"is embedded as Board\.vdev, not as PciDevice\.vdev"):
            container_of(board.vdev, PciDevice.vdev)
        board.vdev.close()


# -- what the core itself does


def test_reset_that_the_device_lacks(device: FakeDevice) -> None:
    device.flags &= ~int(lib.VFIO_DEVICE_FLAGS_RESET)
    with vfio_user.open(ADDRESS, mode="type1v2") as pci, pytest.raises(UnsupportedError, match="can't be reset alone"):
        pci.reset()
    assert device.resets == 0


def test_reset_that_is_refused_leaves_the_interrupts_armed(pci: PciDevice, kernel: FakeKernel) -> None:
    (vector,) = pci.irqs.msix.enable(1)
    kernel.failing["VFIO_DEVICE_RESET"] = 1
    with pytest.raises(VfioIoctlError, match=r"VFIO_DEVICE_RESET on .*EPERM"):
        pci.reset()
    pci.irqs.msix.trigger()
    assert vector.wait(1.0) == 1


def test_kinds_that_the_kernel_refuses_are_absent(pci: PciDevice) -> None:
    assert pci.vga is None
    assert pci.rom is None
    assert pci.irqs.err.count == 0


@pytest.mark.parametrize("request_name", ["VFIO_DEVICE_GET_REGION_INFO", "VFIO_DEVICE_GET_IRQ_INFO"])
def test_other_refusals_are_errors(device: FakeDevice, kernel: FakeKernel, request_name: str) -> None:
    kernel.failing[request_name] = 5
    with pytest.raises(VfioIoctlError, match=rf"{request_name} on {ADDRESS}: .*EIO"):
        vfio_user.open(ADDRESS, mode="type1v2")


def test_transfers_that_end_early(pci: PciDevice, device: FakeDevice) -> None:
    end = (device.num_regions << 40) - 2
    with pytest.raises(
        VfioOSError, match=rf"read 4 bytes of {ADDRESS} at file offset {end:#x}: 2 bytes only"
    ) as caught:
        pci.vdev.ops.read(pci.vdev, end, 4)
    assert caught.value.errno == errno.EIO


def test_transfers_that_fail(pci: PciDevice, device: FakeDevice) -> None:
    with pytest.raises(VfioOSError, match=rf"write 2 bytes of {ADDRESS} at file offset 0x7f+: "):
        pci.vdev.ops.write(pci.vdev, (1 << 63) - 1, b"ab")
    assert os.fstat(device.file).st_size == device.num_regions << 40
    assert device.read(CONFIG, 0, 2) == b"\x34\x12"

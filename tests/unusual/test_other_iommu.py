"""In guests with another IOMMU than Intel's (``--iommu amd``, ``virtio``) and VGA: the same verbs, VGA's ranges."""

from __future__ import annotations

import pytest

import vfio_user
from tests.guest.conftest import kernel_modes
from tests.guest.leaks import nothing_left
from vfio_user import testing
from vfio_user.drivers.edu import Edu
from vfio_user.drivers.nvme import NvmeController
from vfio_user.errors import BoundsError
from vfio_user.pci import Command

MODES = kernel_modes() if testing.in_guest() else []

# VGA's miscellaneous output register is written at one port and read at another.
MISC_WRITE, MISC_READ = 0x3C2, 0x3CC
TEXT = 0xB8000


@pytest.mark.parametrize("mode", MODES)
def test_interrupts_and_dma(mode: str) -> None:
    with (
        nothing_left(),
        vfio_user.open(testing.device("edu").address, mode=mode) as pci,
        Edu(pci) as edu,
        edu.alloc() as buffer,
    ):
        assert edu.factorial(7) == 5040
        buffer[:5] = b"there"
        edu.copy_to_device(buffer[:5])
        edu.copy_from_device(buffer[100:105])
        assert bytes(buffer[100:105]) == b"there"


@pytest.mark.parametrize("mode", MODES)
def test_nvme(mode: str) -> None:
    with (
        nothing_left(),
        vfio_user.open(testing.device("nvme").address, mode=mode) as pci,
        NvmeController(pci) as controller,
    ):
        namespace = controller.namespaces[0]
        data = bytes(range(256)) * 512
        namespace.write(8, data)
        assert namespace.read(8, len(data) // namespace.block_size) == data


def test_the_vga_ranges() -> None:
    with nothing_left(), vfio_user.open(testing.device("VGA").address) as pci:
        assert pci.vga is not None
        pci.config.set_command(enable=Command.IO | Command.MEMORY)
        before = pci.vga.read8(MISC_READ)
        for value in (before ^ 0x08, before):
            pci.vga.write8(MISC_WRITE, value)
            assert pci.vga.read8(MISC_READ) == value
        # Bit 0 puts the CRT controller at 0x3d4, where its index reads back.
        pci.vga.write8(MISC_WRITE, before | 0x01)
        pci.vga.write8(0x3D4, 0x0E)
        assert pci.vga.read8(0x3D4) == 0x0E
        with pytest.raises(BoundsError):
            pci.vga.read8(pci.vga.size)

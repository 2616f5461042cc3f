"""Regions that are not plain memory BARs, and what else can be done with those that are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import vfio_user
from tests.guest.leaks import nothing_left
from vfio_user import Program, testing
from vfio_user.errors import ArgumentError, BoundsError, DeadlineError, UnsupportedError
from vfio_user.kernel.uapi import RegionFlags
from vfio_user.pci import Command
from vfio_user.testing import GuestDevice

Find = Callable[[str], GuestDevice]

E1000E_STATUS = 0x8
E1000E_IO_ADDRESS, E1000E_IO_DATA = 0x0, 0x4


def test_io_ports_have_the_same_verbs() -> None:
    with nothing_left(), vfio_user.open(testing.device("e1000e").address) as pci:
        pci.config.set_command(enable=Command.IO | Command.MEMORY)
        ports = pci.bar(2)
        assert ports.mmio is None
        assert not ports.flags & RegionFlags.MMAP
        # The ports are a window to the registers that BAR 0 has in memory.
        ports.write32(E1000E_IO_ADDRESS, E1000E_STATUS)
        assert ports.read32(E1000E_IO_ADDRESS) == E1000E_STATUS
        assert ports.read32(E1000E_IO_DATA) == pci.bar(0).read32(E1000E_STATUS)
        assert ports.poll_until(E1000E_IO_ADDRESS, mask=0xFF, equals=E1000E_STATUS, timeout=1) == E1000E_STATUS
        with pytest.raises(BoundsError):
            ports.read32(ports.size)
        with pytest.raises(UnsupportedError, match=r"can't be mapped"):
            ports.view()
        with pytest.raises(UnsupportedError, match=r"can't be mapped"):
            ports.access()


def test_expansion_rom_is_read_through_the_file() -> None:
    address = testing.device("e1000e").address
    with vfio_user.open(address) as pci:
        assert pci.rom is not None
        assert pci.rom.pread(0, 2) == b"\x55\xaa"
        assert not pci.rom.flags & RegionFlags.WRITE
        with pytest.raises(UnsupportedError, match=r"can't be written"):
            pci.rom.pwrite(0, b"\0")
        resource = Path(f"/sys/bus/pci/devices/{address}/resource").read_text().splitlines()[6].split()
        assert pci.rom.size == int(resource[1], 16) - int(resource[0], 16) + 1


def test_vga_is_absent_on_other_devices(vfio_device: Find) -> None:
    with vfio_user.open(vfio_device("edu").address) as pci:
        assert pci.vga is None
        assert pci.rom is None


def test_register_program_runs_in_one_call(vfio_device: Find) -> None:
    with vfio_user.open(vfio_device("edu").address) as pci:
        program = Program(
            [("read32", 0), ("write32", 4, 0x11223344), ("read32", 4), ("poll32", 0x20, 0x1, 0, 100_000), ("read32", 0)]
        )
        results = pci.bar(0).run(program)
        assert results[:2] == [0x010000ED, 0x11223344 ^ 0xFFFFFFFF]
        assert results[-1] == 0x010000ED
        assert len(results) == program.num_results == 4
        with pytest.raises(ArgumentError, match=r"1"):
            Program([("read32", 0), ("jump", 4)])
        with pytest.raises(BoundsError):
            pci.bar(0).run(Program([("read32", pci.bar(0).size)]))


def test_poll_has_a_deadline(vfio_device: Find) -> None:
    with vfio_user.open(vfio_device("edu").address) as pci, pytest.raises(DeadlineError, match=r"0x10000ed"):
        pci.bar(0).poll_until(0, mask=0xFF, equals=0xEE, timeout=0.05)


def test_blocks_are_copied_by_accesses_of_the_width(vfio_device: Find) -> None:
    with vfio_user.open(vfio_device("ivshmem").address) as pci:
        memory = pci.bar(2)
        pattern = bytes(range(256)) * 64
        memory.write_block(4096, pattern, width=4)
        for width in (1, 2, 4, 8):
            back = bytearray(len(pattern))
            memory.readinto(4096, back, width=width)
            assert back == pattern
        assert memory.pread(4096, len(pattern)) == pattern
        for width, read, value in ((1, memory.read8, 0x04), (2, memory.read16, 0x0504), (4, memory.read32, 0x07060504)):
            assert read(4096 + 4) == value, width
        assert memory.read64(4096 + 8) == 0x0F0E0D0C0B0A0908
        memory.write64(4096, 0x1122334455667788)
        assert memory.pread(4096, 8) == bytes.fromhex("8877665544332211")


def test_raw_views_outlive_the_device(vfio_device: Find) -> None:
    pci = vfio_user.open(vfio_device("ivshmem").address)
    view = pci.bar(2).view(0, 4096)
    view[:4] = b"live"
    pci.close()
    assert bytes(view) == b"\xff" * 4096, "dead memory reads as all-ones"
    with vfio_user.open(vfio_device("ivshmem").address) as again:
        assert again.bar(2).pread(0, 4) == b"live"
    view.release()

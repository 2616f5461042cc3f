"""Register maps over memory that stands for a device."""

from __future__ import annotations

import enum
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.fake_device import FakeDevice
from vfio_user import PciDevice
from vfio_user.device.regmap import Register, RegisterMap
from vfio_user.device.regvalue import Access, Field, RegisterValue
from vfio_user.drivers.edu import Edu, EduRegisters
from vfio_user.drivers.igb import Igb
from vfio_user.drivers.known import driver_for, load_driver
from vfio_user.drivers.nvme import NvmeController
from vfio_user.drivers.nvme.registers import NvmeRegisters, StatusRegister
from vfio_user.drivers.virtio import VirtioNet
from vfio_user.errors import ArgumentError, BoundsError, ClosedError, MemoryDisabledError, UnsupportedError
from vfio_user.pci import Command


class Memory:
    """A kilobyte that has the verbs of a region."""

    def __init__(self) -> None:
        self.data = bytearray(1024)
        self.accesses: list[tuple[str, int, int]] = []

    def _read(self, width: str, offset: int) -> int:
        self.accesses.append(("r", struct.calcsize(width), offset))
        return int(struct.unpack_from(f"<{width}", self.data, offset)[0])

    def _write(self, width: str, offset: int, value: int) -> None:
        self.accesses.append(("w", struct.calcsize(width), offset))
        struct.pack_into(f"<{width}", self.data, offset, value)

    def read8(self, offset: int, /) -> int:
        return self._read("B", offset)

    def read16(self, offset: int, /) -> int:
        return self._read("H", offset)

    def read32(self, offset: int, /) -> int:
        return self._read("I", offset)

    def read64(self, offset: int, /) -> int:
        return self._read("Q", offset)

    def write8(self, offset: int, value: int, /) -> None:
        self._write("B", offset, value)

    def write16(self, offset: int, value: int, /) -> None:
        self._write("H", offset, value)

    def write32(self, offset: int, value: int, /) -> None:
        self._write("I", offset, value)

    def write64(self, offset: int, value: int, /) -> None:
        self._write("Q", offset, value)


class Mode(enum.IntEnum):
    IDLE = 0
    BUSY = 2


class Control(RegisterValue):
    """What the machine does."""

    go = Field(0, kind=bool, doc="Go.")
    mode = Field(4, 6, kind=Mode, doc="What it does.")
    count = Field(8, 31, doc="How often.")


class Machine(RegisterMap):
    """Registers of a machine."""

    source = "its manual"

    control = Register(0x10, 32, kind=Control, doc="What it does.", source="1.2")
    serial = Register(0x20, 64, Access.RO, doc="Who it is.")
    bell = Register(0x08, 16, Access.WO, doc="Rings.")
    queue = Register(0x0C, 8, Access.RC, doc="Takes one byte out.")


@pytest.fixture
def memory() -> Memory:
    return Memory()


def test_each_access_has_the_width_and_the_place_of_its_register(memory: Memory) -> None:
    regs = Machine(memory, base=0x100)
    regs.control.write(0xABCD01)
    regs.bell.write(7)
    assert (regs.control.read(), regs.serial.read(), regs.queue.read()) == (0xABCD01, 0, 0)
    assert memory.accesses == [("w", 4, 0x110), ("w", 2, 0x108), ("r", 4, 0x110), ("r", 8, 0x120), ("r", 1, 0x10C)]


def test_what_may_not_be_done_is_refused_by_name(memory: Memory) -> None:
    regs = Machine(memory)
    with pytest.raises(UnsupportedError, match="serial is read-only"):
        regs.serial.write(1)
    with pytest.raises(UnsupportedError, match="bell is write-only"):
        regs.bell.read()
    with pytest.raises(UnsupportedError, match="own region"):
        regs.control.wait(1.0, go=1)
    assert memory.accesses == []


def test_values_know_their_fields(memory: Memory) -> None:
    regs = Machine(memory)
    regs.control.write(0x321)
    value = regs.control.get()
    assert (value.go, value.mode, value.count) == (True, Mode.BUSY, 3)
    assert repr(value) == "<Control 0x321: go=1 mode=busy count=3>"
    assert regs.control.update(count=9, go=0) == regs.control.read() == 0x920
    assert Control(0x50).text() == "go=0 mode=5 count=0", "a number that has no name stays one"
    assert Control.compose(mode=Mode.BUSY) == 0x20
    with pytest.raises(ArgumentError, match="no field goo; it has go, mode, count"):
        value.replace(goo=1)
    with pytest.raises(BoundsError, match="0 to 7"):
        Control.compose(mode=8)


@given(st.integers(0, 0xFFFF_FFFF))
def test_a_value_is_what_its_fields_compose(number: int) -> None:
    value = Control(number)
    assert Control.compose(**dict(value.numbers())) == number & ~0x8E


def test_a_snapshot_leaves_out_what_reading_changes(memory: Memory) -> None:
    regs = Machine(memory)
    found = {each.register.name: each for each in regs.snapshot()}
    assert list(found) == ["bell", "queue", "control", "serial"], "ordered by offset"
    assert found["bell"].note == "write-only"
    assert found["queue"].value is None
    assert [each[2] for each in memory.accesses] == [0x10, 0x20]
    assert {each.register.name: each for each in regs.snapshot(everything=True)}["queue"].value == 0
    assert found["control"].to_json()["fields"] == {"go": 0, "mode": 0, "count": 0}


def test_what_can_not_be_is_refused_when_it_is_declared() -> None:
    with pytest.raises(ArgumentError, match="24 bits"):
        Register(0, 24, doc="No such width.")
    with pytest.raises(ArgumentError, match="can't be at offset 0x2"):
        Register(2, 32, doc="Crooked.")
    with pytest.raises(ArgumentError, match=r"Control.count is beyond"):
        Register(0, 16, kind=Control, doc="Too narrow.")
    with pytest.raises(ArgumentError, match="overlaps"):
        type("Twice", (RegisterValue,), {"a": Field(0, 3, doc="A."), "b": Field(3, doc="B.")})
    with pytest.raises(ArgumentError, match="64:64"):
        Field(64, doc="Beyond.")


def test_the_reference_has_every_register_and_field() -> None:
    text = NvmeRegisters.describe()
    for register in NvmeRegisters.registers():
        assert f"`{register.name}`" in text
        for field in register.kind.fields.values():
            assert f"`{field.name}` | {field.doc}" in text
    assert "| `0x001c` | `csts` | 32 | w1c | Controller status. (3.1.3.6) |" in text
    assert "Source: its manual." in Machine.describe()


def test_descriptions_without_a_device() -> None:
    assert (Machine.control.offset, Machine.control.width, Machine.control.access) == (0x10, 32, Access.RW)
    assert repr(Machine.control) == "<Register control at 0x10, 32 bits, rw>"
    assert repr(StatusRegister(0x5)) == "<StatusRegister 0x5: rdy=1 cfs=0 shst=under_way nssro=0 pp=0>"


def test_drivers_are_found_by_their_devices() -> None:
    assert driver_for(0x1234, 0x11E8, 0xFF0000) is Edu
    assert driver_for(0x1B36, 0x10, 0x010802) is NvmeController
    assert driver_for(1, 2, 3) is None
    assert load_driver("vfio_user.drivers.edu:Edu").register_maps == (EduRegisters,)
    for wrong, why in (("edu", "MODULE:CLASS"), ("os:path", "no vfio_user"), ("nowhere:X", "can't be imported")):
        with pytest.raises(ArgumentError, match=why):
            load_driver(wrong)


class Real(RegisterMap):
    """Registers of every width, at the ends of a region of the fake device."""

    byte = Register(0x3, 8, doc="One.")
    word = Register(0x6, 16, doc="Two.")
    double = Register(0x8, 32, doc="Four.")
    quad = Register(0xFF8, 64, doc="Eight.")
    beyond = Register(0x1000, 32, doc="Not there.")


def test_registers_of_a_mapped_region(device: FakeDevice, pci: PciDevice) -> None:
    bar, regs = pci.bar(0), Real(pci.bar(0))
    for register, value in ((regs.byte, 0xAB), (regs.word, 0xABCD), (regs.double, 0xABCDEF01), (regs.quad, 1 << 63)):
        register.write(value)
        width = register.register.width // 8
        assert register.read() == value == int.from_bytes(device.read(0, register.offset, width), "little")
        with bar.access():
            assert register.read() == value
        for wrong in (-1, 1 << register.register.width, 1 << 64):
            with pytest.raises(ArgumentError):
                register.write(wrong)
        with pytest.raises(TypeError):
            register.write("1")  # type: ignore[arg-type]
        assert register.read() == value
    with pytest.raises(BoundsError):
        regs.beyond.read()
    with pytest.raises(ArgumentError, match="no field nothing"):
        regs.double.wait(0.0, nothing=1)


def test_registers_follow_the_memory_lock(pci: PciDevice) -> None:
    regs = Real(pci.bar(0))
    pci.config.set_command(disable=Command.MEMORY)
    for refused in (regs.double.read, lambda: regs.double.write(1)):
        with pytest.raises(MemoryDisabledError):
            refused()
    pci.config.set_command(enable=Command.MEMORY)
    regs.double.write(7)
    assert regs.double.read() == 7
    pci.close()
    with pytest.raises(ClosedError):
        regs.double.read()


class Flags(enum.IntFlag):
    """What it does."""

    GO = 1
    SPEED = 3 << 6


def test_fields_out_of_an_enumeration_of_bits() -> None:
    kind = RegisterValue.of_flags(Flags)
    assert repr(kind(0x81)) == "<Flags 0x81: go=1 speed=2>"
    assert kind.field("speed").doc == "speed."
    assert driver_for(0x8086, 0x10C9, 0x020000) is Igb
    assert driver_for(0x1AF4, 0x1041, 0x020000) is VirtioNet
    assert "`queue_enable`" in VirtioNet.register_maps[0].describe()

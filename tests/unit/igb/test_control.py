"""Register sequences of the 82576, where the controller does and does not follow."""

from __future__ import annotations

import pytest

from tests.unit.igb.fake_bar import FakeBar
from vfio_user import DmaSlice, Iova
from vfio_user.drivers.igb import IgbDeadlineError, regs
from vfio_user.drivers.igb.control import IgbRegisters
from vfio_user.drivers.igb.regs import ReceiveControl, RxQueue, TxQueue
from vfio_user.drivers.igb.rings import RxRing, TxRing
from vfio_user.errors import BoundsError, DeviceGoneError


@pytest.fixture
def bar() -> FakeBar:
    return FakeBar()


@pytest.fixture
def registers(bar: FakeBar) -> IgbRegisters:
    return IgbRegisters(bar, "igb test")  # type: ignore[arg-type]  # all that is used of a region


def area(iova: int, size: int = 1 << 16) -> DmaSlice:
    return DmaSlice(memoryview(bytearray(size)), Iova(iova))


def test_reset(registers: IgbRegisters, bar: FakeBar) -> None:
    registers.reset()
    order = [offset for offset, _ in bar.written]
    assert order.index(regs.IMC) < order.index(regs.CTRL), "interrupts are off before anything else"
    assert order.index(regs.RCTL) < order.index(regs.CTRL)
    assert any(offset == regs.CTRL and value & regs.Control.RESET for offset, value in bar.written)
    last_reset = max(n for n, (offset, value) in enumerate(bar.written) if offset == regs.CTRL)
    assert (regs.EIMC, regs.ALL_ONES) in bar.written[last_reset:], "and again after it"
    registers.claim()
    assert bar.last(regs.CTRL_EXT) & 1 << 28
    assert not bar.last(regs.GCR) & 1 << 16


def test_controller_that_does_not_come_back(registers: IgbRegisters, bar: FakeBar) -> None:
    bar.on_write[regs.CTRL] = lambda value: value
    with pytest.raises(IgbDeadlineError, match=r"igb test did not come back from a reset within 0\.5 s"):
        registers.reset()


def test_dma_that_does_not_end_is_ended_by_the_reset(registers: IgbRegisters, bar: FakeBar) -> None:
    bar.on_write[regs.CTRL] = lambda value: value & ~regs.Control.RESET  # master enable stays
    registers.reset()


def test_controller_that_is_gone(registers: IgbRegisters, bar: FakeBar) -> None:
    bar.values[regs.STATUS] = regs.ALL_ONES
    for act in (registers.reset, registers.link_up):
        with pytest.raises(DeviceGoneError, match="reads as all-ones"):
            act()
    assert bar.written == []


def test_eeprom(registers: IgbRegisters, bar: FakeBar) -> None:
    assert [registers.read_eeprom(word) for word in (0, 1, 0x3FFF)] == [0x1000, 0x1001, 0x4FFF]
    for word in (-1, 0x4000):
        with pytest.raises(BoundsError, match="has no EEPROM word"):
            registers.read_eeprom(word)
    bar.on_write[regs.EERD] = lambda value: value
    with pytest.raises(IgbDeadlineError, match="did not read its EEPROM"):
        registers.read_eeprom(0)


def test_phy(registers: IgbRegisters, bar: FakeBar) -> None:
    registers.write_phy(4, 0x1234)
    assert bar.last(regs.MDIC) == 0x1234 | 4 << 16 | 1 << 21 | 1 << 26
    bar.on_write[regs.MDIC] = lambda value: value | regs.Mdic.READY | 0xBEEF
    assert registers.read_phy(5) == 0xBEEF
    bar.on_write[regs.MDIC] = lambda value: value | regs.Mdic.READY | regs.Mdic.ERROR
    with pytest.raises(IgbDeadlineError, match="the PHY did not answer"):
        registers.read_phy(5)
    bar.on_write[regs.MDIC] = lambda value: value
    with pytest.raises(IgbDeadlineError, match="did not reach its PHY"):
        registers.read_phy(5)


def test_address(registers: IgbRegisters, bar: FakeBar) -> None:
    bar.values |= {regs.RAL: 0x12005452, regs.RAH: 0x80005634}
    assert registers.mac().hex(":") == "52:54:00:12:34:56"


def test_queues(registers: IgbRegisters, bar: FakeBar) -> None:
    registers.set_receive_queue(1, RxRing(area(0x1_2345_0000), None, 64, 2048), 2048)
    registers.set_transmit_queue(1, TxRing(area(0x2_0000_1000), None, 128, 2048))
    assert [bar.last(register) for register in (0xC040, 0xC044, 0xC048, 0xC04C)] == [0x2345_0000, 1, 1024, 2 | 1 << 25]
    assert [bar.last(register) for register in (0xE040, 0xE044, 0xE048)] == [0x1000, 2, 2048]
    assert bar.last(RxQueue(1).control) & bar.last(TxQueue(1).control) & regs.QUEUE_ENABLE
    registers.set_receive_queue(0, RxRing(area(0x5000), None, 64, 2048), 2048)
    registers.set_transmit_queue(0, TxRing(area(0x6000), None, 64, 2048))
    registers.start(2, ReceiveControl.BROADCAST, 1522)
    assert bar.last(regs.RCTL) == 1 << 1 | 1 << 15 | 1 << 26


def test_queue_that_does_not_start(registers: IgbRegisters) -> None:
    with pytest.raises(IgbDeadlineError, match="did not start a queue"):
        registers.start(1, ReceiveControl(0), 1522)


def test_interrupts(registers: IgbRegisters, bar: FakeBar) -> None:
    registers.route_interrupts([0, 2], [1, 3], 4)
    assert bar.last(0x1700) == 0x8180
    assert bar.last(0x1704) == 0x8382
    assert bar.last(0x1740) == 0x8400
    assert bar.last(regs.EIMS) == bar.last(regs.EIAC) == 0b11111
    registers.raise_interrupts(0b100)
    assert bar.last(regs.EICS) == 0b100


def test_flows_are_spread(registers: IgbRegisters, bar: FakeBar) -> None:
    registers.spread(1)
    assert bar.written == []
    registers.spread(3)
    table = b"".join(bar.last(regs.RETA + n).to_bytes(4, "little") for n in range(0, 128, 4))
    assert sorted(set(table)) == [0, 1, 2]
    assert max(table.count(n) for n in range(3)) - min(table.count(n) for n in range(3)) <= 1
    assert bar.last(regs.MRQC) & 0b111 == 2


def test_counters_of_64_bits(registers: IgbRegisters, bar: FakeBar) -> None:
    bar.values |= {0x4088: 5, 0x408C: 1, 0x4074: 3}
    counters = registers.clear_counters()
    assert counters["rx_bytes"] == (1 << 32) + 5
    assert counters["rx_frames"] == 3

"""The life of a port and of a copy engine: what is on, what is given back, what is told when."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Self, cast

import pytest

from tests.unit.igb.fake_bar import FakeBar
from vfio_user import DmaSlice, Iova, PciDevice
from vfio_user.drivers.ethernet import FrameSizeError, LinkDownError
from vfio_user.drivers.igb import Igb, IgbCopyEngine, IgbDeadlineError, IgbNotRunningError, regs
from vfio_user.drivers.resettable import DriverState
from vfio_user.errors import ArgumentError, BoundsError, DeviceGoneError, ZappedError


class Memory(DmaSlice):
    """What `dma_alloc` gives."""

    __slots__ = ("pci",)

    def __init__(self, pci: FakePci, size: int) -> None:
        super().__init__(memoryview(bytearray(size)), Iova(1 << 32))
        self.pci = pci

    def __enter__(self) -> Self:
        self.pci.allocated += 1
        return self

    def __exit__(self, *_: object) -> None:
        assert not self.pci.master, "memory is given back after the device is cut off"
        self.pci.allocated -= 1


class FakePci:
    """As much of a `PciDevice` as the driver uses."""

    def __init__(self) -> None:
        self.bar0 = FakeBar()
        self.name = "0000:01:00.0"
        self.config = SimpleNamespace(vendor_id=0x8086, device_id=0x10C9, class_code=0x020000)
        self.driver: object = None
        self.master = False
        self.allocated = 0
        self.vectors = 0
        self.irqs = SimpleNamespace(msix=SimpleNamespace(enable=self._enable, disable=lambda: self._enable(0)))

    def _enable(self, count: int) -> tuple[SimpleNamespace, ...]:
        self.vectors = count
        return tuple(SimpleNamespace() for _ in range(count))

    def bar(self, number: int) -> FakeBar:
        assert number == 0
        return self.bar0

    def set_master(self, enable: bool) -> None:
        self.master = enable

    def dma_alloc(self, size: int) -> Memory:
        return Memory(self, size)


@pytest.fixture
def fake() -> FakePci:
    return FakePci()


@pytest.fixture
def pci(fake: FakePci) -> PciDevice:
    return cast("PciDevice", fake)


def test_start_and_stop(fake: FakePci, pci: PciDevice) -> None:
    with Igb(pci, queues=2) as port:
        assert port.state is DriverState.RUNNING
        assert (fake.master, fake.vectors, fake.allocated) == (True, 5, 2)
        assert fake.bar0.last(regs.RCTL) & regs.ReceiveControl.ENABLE
        assert fake.bar0.last(regs.EIMS) == 0b11111
        assert [fake.bar0.last(0xC018 + 0x40 * n) for n in range(2)] == [255, 255]
    assert (fake.master, fake.vectors, fake.allocated) == (False, 0, 0)
    assert fake.bar0.last(regs.RCTL) == 0
    assert fake.bar0.last(regs.EIMC) == regs.ALL_ONES


def test_start_that_fails_gives_everything_back(fake: FakePci, pci: PciDevice) -> None:
    fake.bar0.on_write[regs.CTRL] = lambda value: value
    with pytest.raises(IgbDeadlineError, match="did not come back from a reset"):
        Igb(pci).start()
    assert (fake.master, fake.vectors, fake.allocated, fake.driver) == (False, 0, 0, None)
    fake.bar0.values[regs.STATUS] = regs.ALL_ONES
    with pytest.raises(DeviceGoneError):
        Igb(pci).start()
    assert (fake.master, fake.vectors, fake.allocated) == (False, 0, 0)


def test_intervals_between_interrupts(fake: FakePci, pci: PciDevice) -> None:
    with Igb(pci, queues=2, interrupt_interval=0.000125) as port:
        assert [fake.bar0.last(regs.EITR + 4 * n) for n in range(4)] == [125 << 2] * 4
        port.set_interrupt_interval(0.008191)
        assert fake.bar0.last(regs.EITR) == 0x1FFF << 2
        fake.bar0.written.clear()
        port.reset()
        assert fake.bar0.last(regs.EITR) == 0x1FFF << 2, "kept over a reset"
        for wrong in (-1e-6, 0.0082, 1e300, float("nan")):
            with pytest.raises(BoundsError, match=r"give 0 to 0\.008191"):
                port.set_interrupt_interval(wrong)
        with pytest.raises(BoundsError, match="between interrupts"):
            Igb(pci, interrupt_interval=1)
    with pytest.raises(IgbNotRunningError):
        port.set_interrupt_interval(0)


def test_reset(fake: FakePci, pci: PciDevice) -> None:
    with Igb(pci, interrupts=False) as port:
        port.send([bytes(60)] * 3)
        fake.bar0.values[regs.STATISTICS["tx_frames"][0]] = 2
        port.reset_prepare()
        assert port.state.value == "resetting"
        assert fake.master, "only what can't be stopped is cut off"
        with pytest.raises(IgbNotRunningError, match="is resetting; wait until the reset is over"):
            port.receive()
        fake.bar0.values[regs.STATISTICS["tx_frames"][0]] = 0
        fake.master = False
        port.reset_done()
        assert port.state is DriverState.RUNNING
        assert fake.master
        port.send([bytes(60)])
        counted = port.statistics()
        assert (counted.tx_frames, counted.aborted, counted.reported_sent) == (2, 3, 0)
        port.reset_done()  # nobody asked: does nothing
        assert port.queues[0].tx.in_flight == 1


def test_reset_of_a_device_that_does_not_answer(fake: FakePci, pci: PciDevice) -> None:
    with Igb(pci, interrupts=False) as port:
        fake.bar0.values[regs.STATUS] = regs.ALL_ONES
        port.reset_prepare()
        assert not fake.master, "it is cut off"
        with pytest.raises(DeviceGoneError):
            port.reset_done()
        assert port.state.value == "failed"
        with pytest.raises(IgbNotRunningError, match=r"is failed; reset\(\) it"):
            port.link_up  # noqa: B018
        fake.bar0.values[regs.STATUS] = regs.Status.LINK_UP
        port.reset()
        assert port.state.value == "running"


def test_reset_between_two_looks_is_told_as_that(
    fake: FakePci, pci: PciDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Igb(pci, interrupts=False) as port:

        def zapped(offset: int) -> int:
            raise ZappedError("zapped by a reset")

        monkeypatch.setattr(fake.bar0, "read32", zapped)
        with pytest.raises(ZappedError, match="zapped by a reset"):
            port.link_up  # noqa: B018

        def meanwhile(offset: int) -> int:
            port._state = DriverState.RESETTING
            return zapped(offset)

        monkeypatch.setattr(fake.bar0, "read32", meanwhile)
        with pytest.raises(IgbNotRunningError, match="is resetting"):
            port.link_up  # noqa: B018


def test_sending_is_refused(fake: FakePci, pci: PciDevice) -> None:
    with Igb(pci, interrupts=False) as port:
        with pytest.raises(FrameSizeError, match="frame 1 has 13 bytes"):
            port.send([bytes(60), bytes(13)])
        fake.bar0.values[regs.STATUS] &= ~regs.Status.LINK_UP
        with pytest.raises(LinkDownError, match="Nothing was sent"):
            port.send([bytes(60)])
        with pytest.raises(IgbDeadlineError, match="is down"):
            port.wait_link(0.02)
        assert port.queues[0].tx.in_flight == 0
        with pytest.raises(BoundsError, match="limit is 0"):
            port.receive(0)


def test_numbers_that_can_not_be(pci: PciDevice) -> None:
    for wrong in ({"queues": 0}, {"queues": 5}, {"mtu": 45}, {"mtu": 10000}, {"rx_entries": 12}, {"tx_entries": 0}):
        with pytest.raises(BoundsError, match=f"{next(iter(wrong))} is"):
            Igb(pci, **wrong)  # type: ignore[arg-type]  # on purpose
    with pytest.raises(ArgumentError, match="timeout 0 is not positive"):
        Igb(pci, timeout=0)
    with pytest.raises(IgbNotRunningError, match="is stopped"):
        Igb(pci).reset()


def test_loopback_is_switched_on(fake: FakePci, pci: PciDevice) -> None:
    with IgbCopyEngine(pci) as engine:
        assert fake.bar0.last(regs.RCTL) & regs.ReceiveControl.MAC_LOOPBACK
        commands = [value & 0xFFFF for offset, value in fake.bar0.written if offset == regs.MDIC]
        assert commands[-1] & regs.BasicControl.LOOPBACK
        assert fake.vectors == 1
        engine.raise_interrupt()
        assert fake.bar0.last(regs.EICS) == 1
    assert (fake.master, fake.vectors, fake.allocated) == (False, 0, 0)


def test_loopback_without_a_link(fake: FakePci, pci: PciDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vfio_user.drivers.igb.copy._LINK_TIMEOUT", 0.05)
    fake.bar0.values[regs.STATUS] &= ~regs.Status.LINK_UP
    with pytest.raises(IgbDeadlineError, match="its loopback has no link"):
        IgbCopyEngine(pci).start()
    assert (fake.master, fake.vectors, fake.allocated) == (False, 0, 0)

"""Events of a device: asked for late, told once, handled safely; and the end of waiting when the device is closed."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import select
import sys
import time
from collections.abc import Callable

import pytest

from tests.unit.conftest import ADDRESS
from tests.unit.fake_device import CONFIG, ERR, FIXED, MSI, REQ, FakeDevice
from tests.unit.threads import start
from vfio_user import DeviceEvent, EventKind, IrqVector, PciDevice
from vfio_user.drivers import Driver
from vfio_user.errors import ArgumentError, BusyError, ClosedError, DeadlineError, LockOrderError
from vfio_user.pci import Command

REQUEST = DeviceEvent(EventKind.REQUEST, ADDRESS)
GONE = DeviceEvent(EventKind.GONE, ADDRESS)


@pytest.fixture
def device(device: FakeDevice) -> FakeDevice:
    device.irqs[ERR] = (1, FIXED)
    return device


def ask_back(device: FakeDevice, times: int = 1) -> None:
    os.eventfd_write(device.eventfds[REQ, 0], times)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def fall_off(device: FakeDevice) -> None:
    device.write(CONFIG, 0, b"\xff" * 4096)


class Sink(Driver):
    match = ()
    stopped = 0

    @classmethod
    def matches(cls, pci: PciDevice) -> bool:
        return True

    def remove(self) -> None:
        type(self).stopped += 1


def test_what_is_logged_for_people(device: FakeDevice, pci: PciDevice, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "vfio_user"):
        pci.irqs.msi.enable(2)
        pci.reset()
        pci.close()
    said = [(each.name, re.sub(r"[\d.]+ ms", "some ms", each.getMessage())) for each in caplog.records]
    assert said == [
        ("vfio_user.irq", f"{ADDRESS} MSI: 2 vectors enabled"),
        ("vfio_user.memory", f"memory of {ADDRESS} is away: reset"),
        ("vfio_user.reset", f"function reset of {ADDRESS}: some ms"),
        ("vfio_user.device", f"{ADDRESS} is closed"),
    ]


def test_nothing_is_armed_before_it_is_used(device: FakeDevice, pci: PciDevice) -> None:
    assert device.eventfds == {}
    assert "idle" in repr(pci.events)
    assert pci.events.poll() is None
    assert set(device.eventfds) == {(REQ, 0), (ERR, 0)}
    pci.events.disarm()
    assert device.eventfds == {}


def test_each_event_is_told_once(device: FakeDevice, pci: PciDevice) -> None:
    readable = select.poll()
    readable.register(pci.events, select.POLLIN)
    assert readable.poll(0) == []
    ask_back(device, 3)
    assert readable.poll(0)
    assert pci.events.wait(5.0) == DeviceEvent(EventKind.REQUEST, ADDRESS, 3)
    assert pci.events.poll() is None
    assert readable.poll(0) == []
    os.eventfd_write(device.eventfds[ERR, 0], 1)
    assert pci.events.wait(5.0).kind is EventKind.ERROR
    with pytest.raises(DeadlineError, match="nothing happened"):
        pci.events.wait(0.01)
    with pytest.raises(ArgumentError):
        pci.events.wait(-1)
    with pci.bar(0).access(), pytest.raises(LockOrderError, match="leave access"):
        pci.events.wait(0.01)


def test_a_device_that_is_gone_says_so_once(device: FakeDevice, pci: PciDevice) -> None:
    pci.events.arm()
    fall_off(device)
    ask_back(device)
    assert [pci.events.wait(5.0), pci.events.wait(5.0)] == [REQUEST, GONE]
    ask_back(device)
    assert pci.events.wait(5.0) == REQUEST
    assert pci.events.poll() is None


def test_gone_is_also_told_when_this_process_finds_out(device: FakeDevice, pci: PciDevice) -> None:
    fall_off(device)
    with pytest.raises(Exception, match="all-ones"):
        pci.revive()
    assert pci.events.wait(5.0) == GONE


def test_who_has_the_interrupt_has_the_events(pci: PciDevice) -> None:
    with pci.irqs.req.enable(1), pytest.raises(BusyError, match="REQ"):
        pci.events.arm()
    pci.events.arm()


def test_closing_ends_waits_and_loops(device: FakeDevice, pci: PciDevice) -> None:
    seen: list[DeviceEvent] = []
    waiting = [start(lambda: seen.extend(pci.events)) for _ in range(2)]
    until(lambda: pci.events._waiters == 2)
    pci.close()
    for each in waiting:
        each.result(20)
    assert seen == []
    assert list(pci.events) == []
    for late in (pci.events.poll, pci.events.fileno, pci.events.arm):
        with pytest.raises(ClosedError):
            late()


def test_a_vector_that_is_being_closed_is_no_event(pci: PciDevice) -> None:
    """Its file may stay readable for a while: by what wakes its waiters."""
    pci.events.arm()
    fd, (_, vector) = next(iter(pci.events._watched.items()))
    vector._closing = True
    os.eventfd_write(fd, 1)
    assert [pci.events.poll() for _ in range(2)] == [None, None]
    vector._closing = False


def test_asyncio(device: FakeDevice, pci: PciDevice) -> None:
    async def main() -> list[EventKind]:
        found = []
        asyncio.get_running_loop().call_later(0.02, lambda: ask_back(device))
        async with asyncio.timeout(20):
            async for event in pci.events:
                found.append(event.kind)
                if len(found) == 1:
                    pci.close()
        return found

    assert asyncio.run(main()) == [EventKind.REQUEST]


def test_a_request_releases_the_device_without_a_look_at_sysfs(
    device: FakeDevice, pci: PciDevice, caplog: pytest.LogCaptureFixture
) -> None:
    opened: list[str] = []
    watching = True
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if watching and event == "open" else None)
    Sink.stopped = 0
    driver = Sink(pci)
    driver.start()
    with pci.events.serve(), caplog.at_level(logging.WARNING, "vfio_user.events"):
        opened.clear()
        ask_back(device)
        until(lambda: pci.closed)
    watching = False
    assert Sink.stopped == 1
    assert not [name for name in opened if ADDRESS in name]
    assert "the kernel asks for it back" in caplog.text


def test_who_does_not_leave_is_waited_for_and_named(
    device: FakeDevice, pci: PciDevice, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vfio_user.pci.events._TRY", 0.02)
    with pci.events.serve(), caplog.at_level(logging.WARNING, "vfio_user.events"):
        with pci.vdev.user():
            ask_back(device)
            until(lambda: "not released yet" in caplog.text)
            assert not pci.closed
        until(lambda: pci.closed)


def test_an_error_is_logged_and_mastering_goes_off(
    device: FakeDevice, pci: PciDevice, caplog: pytest.LogCaptureFixture
) -> None:
    pci.set_master(True)
    with pci.events.serve(), caplog.at_level(logging.WARNING, "vfio_user.events"):
        os.eventfd_write(device.eventfds[ERR, 0], 1)
        until(lambda: not pci.config.command & Command.MASTER)
    assert "uncorrectable error" in caplog.text
    assert not pci.closed


def test_a_handler_of_ones_own_and_one_that_raises(
    device: FakeDevice, pci: PciDevice, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[DeviceEvent] = []

    def refuse(event: DeviceEvent) -> None:
        seen.append(event)
        raise RuntimeError("not today")

    pci.events.on(EventKind.REQUEST, refuse)
    with pci.events.serve(), caplog.at_level(logging.ERROR, "vfio_user.events"):
        ask_back(device)
        until(lambda: len(seen) == 1)
        ask_back(device)
        until(lambda: len(seen) == 2)
    assert "not today" in caplog.text
    assert not pci.closed
    assert device.eventfds == {}, "nobody listens any more"
    with pci.irqs.msi.enable(1):
        assert (MSI, 0) in device.eventfds


def test_a_wake_up_is_told_whether_armed_before_or_after(pci: PciDevice) -> None:
    for early in (True, False):
        wakeup = IrqVector(0, "wake-up")
        if early:
            pci.events.arm()
        pci.events._watch(EventKind.WAKE, wakeup)
        os.eventfd_write(wakeup.fileno(), 1)
        assert pci.events.wait(5.0) == DeviceEvent(EventKind.WAKE, ADDRESS)
        wakeup._close()
        assert pci.events.poll() is None
        pci.events.disarm()

"""The base of drivers: what they drive, and how they begin and end."""

from __future__ import annotations

import pytest

from tests.unit.conftest import ADDRESS
from tests.unit.fake_device import FakeDevice
from vfio_user import PciDevice, PciId
from vfio_user.drivers import Driver
from vfio_user.errors import BusyError, UnsupportedError


class Noted(Driver):
    """Note which hook is called."""

    match = (PciId(0x1234, 0x11E8),)

    def __init__(self, pci: PciDevice) -> None:
        super().__init__(pci)
        self.notes: list[str] = []

    def probe(self) -> None:
        self.notes.append("probe")

    def remove(self) -> None:
        self.notes.append("remove")

    def reset_prepare(self) -> None:
        self.notes.append("reset_prepare")

    def reset_done(self) -> None:
        self.notes.append("reset_done")


class Refused(Exception):
    """What a hook of these tests raises."""


def test_block_probes_and_removes(pci: PciDevice) -> None:
    with Noted(pci) as driver:
        assert ",".join(driver.notes) == "probe"
        assert repr(pci.driver) == repr(driver)
        assert repr(driver) == f"<Noted {ADDRESS}>"
    assert driver.notes == ["probe", "remove"]
    assert pci.driver is None
    driver.stop()
    assert driver.notes == ["probe", "remove"]
    assert repr(driver) == f"<Noted {ADDRESS} stopped>"
    assert not pci.closed, "the device outlives the driver"


def test_driver_is_told_of_resets(pci: PciDevice, device: FakeDevice) -> None:
    with Noted(pci) as driver:
        pci.reset()
        assert driver.notes == ["probe", "reset_prepare", "reset_done"]
    pci.reset()
    assert driver.notes[3:] == ["remove"]
    assert device.resets == 2


@pytest.mark.parametrize(
    ("match", "drives"),
    [
        ((PciId(0x1234, 0x11E8),), True),
        ((PciId(vendor=0x1234),), True),
        ((PciId(class_code=0x00FF00),), True),
        ((PciId(0x8086), PciId(0x1234)), True),
        ((PciId(0x1234, 0x11E9),), False),
        ((), False),
    ],
)
def test_match(pci: PciDevice, match: tuple[PciId, ...], drives: bool) -> None:
    class Some(Driver):
        pass

    Some.match = match
    assert Some.matches(pci) is drives
    if drives:
        Some(pci)
    else:
        with pytest.raises(UnsupportedError, match=rf"Some does not drive {ADDRESS} \(1234:11e8, class 00ff00\)"):
            Some(pci)


def test_one_driver_at_a_time(pci: PciDevice) -> None:
    with Noted(pci) as driver:
        for other in (Noted(pci), driver):
            with pytest.raises(BusyError, match=f"{ADDRESS} is driven by Noted already"):
                other.start()
        assert pci.driver is driver
    with Noted(pci):
        pass


def test_probe_that_fails_leaves_the_device_free(pci: PciDevice) -> None:
    class Failing(Noted):
        def probe(self) -> None:
            super().probe()
            raise Refused

    driver = Failing(pci)
    with pytest.raises(Refused):
        driver.start()
    assert driver.notes == ["probe"], "remove is for what was probed"
    assert pci.driver is None
    driver.stop()
    with Noted(pci):
        pass


def test_remove_that_fails_leaves_the_device_free(pci: PciDevice) -> None:
    class Failing(Noted):
        def remove(self) -> None:
            raise Refused

    driver = Failing(pci)
    driver.start()
    with pytest.raises(Refused):
        driver.stop()
    assert pci.driver is None


def test_hooks_are_optional(pci: PciDevice) -> None:
    class Plain(Driver):
        match = (PciId(0x1234),)

    with Plain(pci):
        pci.reset()

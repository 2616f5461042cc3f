"""Interrupt indexes: what the kernel is told, in which order, and what is refused."""

from __future__ import annotations

import struct

import pytest

from tests.guest.leaks import nothing_left
from tests.unit.fake_device import MSI, MSIX, FakeDevice
from tests.unit.fake_kernel import FakeKernel
from vfio_user import PciDevice
from vfio_user._uapi import lib
from vfio_user.errors import (
    ArgumentError,
    BoundsError,
    BusyError,
    ClosedError,
    UnsupportedError,
    VfioIoctlError,
)
from vfio_user.kernel.uapi import IrqFlags

TRIGGER = int(lib.VFIO_IRQ_SET_ACTION_TRIGGER)
ARM = TRIGGER | int(lib.VFIO_IRQ_SET_DATA_EVENTFD)
FIRE = TRIGGER | int(lib.VFIO_IRQ_SET_DATA_NONE)
MASK = int(lib.VFIO_IRQ_SET_ACTION_MASK | lib.VFIO_IRQ_SET_DATA_NONE)
UNMASK = int(lib.VFIO_IRQ_SET_ACTION_UNMASK | lib.VFIO_IRQ_SET_DATA_NONE)
RESAMPLE = int(lib.VFIO_IRQ_SET_ACTION_UNMASK | lib.VFIO_IRQ_SET_DATA_EVENTFD)


def fds(*numbers: int) -> bytes:
    return struct.pack(f"={len(numbers)}i", *numbers)


def test_what_a_device_has(pci: PciDevice) -> None:
    irqs = pci.irqs
    assert [each.count for each in (irqs.intx, irqs.msi, irqs.msix, irqs.err, irqs.req)] == [1, 4, 8, 0, 1]
    assert [each.label for each in pci.vdev.irqs] == ["INTx", "MSI", "MSI-X", "ERR", "REQ"]
    assert irqs.intx.flags & IrqFlags.AUTOMASKED
    assert repr(irqs.msix) == "<IrqIndex 0000:01:00.0 MSI-X 0 of 8>"


def test_enable_and_disable(pci: PciDevice, device: FakeDevice) -> None:
    with pci.irqs.msix.enable(3) as vectors:
        assert device.set_irqs == [(MSIX, ARM, 0, 3, fds(*(vector.fileno() for vector in vectors)))]
        assert [vector.number for vector in vectors] == [0, 1, 2]
        assert pci.irqs.msix.vectors == vectors
    assert device.set_irqs[1:] == [(MSIX, FIRE, 0, 0, b"")]
    assert pci.irqs.msix.vectors == ()
    pci.irqs.msix.disable()
    assert len(device.set_irqs) == 2, "disabling twice asks nothing"


def test_device_disables_what_is_enabled_when_it_is_closed(pci: PciDevice, device: FakeDevice) -> None:
    (vector,) = pci.irqs.msi.enable()
    pci.close()
    assert device.set_irqs[-1] == (MSI, FIRE, 0, 0, b"")
    for refused in (vector.fileno, pci.irqs.msi.enable, pci.irqs.intx.mask):
        with pytest.raises(ClosedError):
            refused()


@pytest.mark.parametrize(
    ("count", "words"), [(0, "the least is 1"), (-1, "the least is 1"), (9, r"it has 8 \(0 to 7\)")]
)
def test_count_out_of_bounds(pci: PciDevice, count: int, words: str) -> None:
    with nothing_left(), pytest.raises(BoundsError, match=words):
        pci.irqs.msix.enable(count)


def test_kind_that_the_device_lacks(pci: PciDevice) -> None:
    for refused in (pci.irqs.err.enable, pci.irqs.err.mask, lambda: pci.irqs.err.add(0)):
        with pytest.raises(UnsupportedError, match=r"0000:01:00\.0 has no ERR interrupt"):
            refused()


def test_enabled_already(pci: PciDevice) -> None:
    with pci.irqs.msi.enable(2), pytest.raises(BusyError, match=r"MSI has 2 vectors enabled; disable\(\) them first"):
        pci.irqs.msi.enable(1)


@pytest.mark.parametrize("code", [22, 28])
def test_refused_enable_leaves_nothing(pci: PciDevice, kernel: FakeKernel, code: int) -> None:
    kernel.failing["VFIO_DEVICE_SET_IRQS"] = code
    with nothing_left(), pytest.raises(VfioIoctlError) as caught:
        pci.irqs.msix.enable(8)
    assert caught.value.errno == code
    with nothing_left(), pytest.raises(VfioIoctlError):
        pci.irqs.msix.add(3)
    kernel.failing.clear()
    with pci.irqs.msix.enable(8) as vectors:
        assert len(vectors) == 8


def test_refused_disable_closes_the_eventfds_nevertheless(pci: PciDevice, kernel: FakeKernel) -> None:
    with nothing_left():
        vectors = pci.irqs.msix.enable(2)
        kernel.failing["VFIO_DEVICE_SET_IRQS"] = 5
        with pytest.raises(VfioIoctlError, match="EIO"):
            pci.irqs.msix.disable()
        assert pci.irqs.msix.vectors == ()
        del vectors
    kernel.failing.clear()


# -- vectors that come and go


def test_add_and_remove_while_others_are_live(pci: PciDevice, device: FakeDevice) -> None:
    with pci.irqs.msix.enable(2) as vectors:
        late = pci.irqs.msix.add(5)
        assert device.set_irqs[-1] == (MSIX, ARM, 5, 1, fds(late.fileno()))
        pci.irqs.msix.trigger(5)
        assert late.drain() == 1
        pci.irqs.msix.remove(0)
        assert device.set_irqs[-1] == (MSIX, ARM, 0, 1, fds(-1))
        assert pci.irqs.msix.vectors == (vectors[1], late)
        with pytest.raises(ClosedError):
            vectors[0].drain()
        assert pci.irqs.msix.add(0).number == 0


def test_first_vector_may_be_any(pci: PciDevice, device: FakeDevice) -> None:
    vector = pci.irqs.msix.add(3)
    assert device.set_irqs == [(MSIX, ARM, 3, 1, fds(vector.fileno()))]
    pci.irqs.msix.remove(3)
    assert device.set_irqs[-1] == (MSIX, FIRE, 0, 0, b""), "the last one takes the index with it"


def test_kernel_that_can_not_add_to_a_live_interrupt(pci: PciDevice) -> None:
    with pci.irqs.msi.enable(2):
        with pytest.raises(UnsupportedError, match=r"can't add one .*\(NORESIZE\); disable\(\), then enable\(3\)"):
            pci.irqs.msi.add(2)
        pci.irqs.msi.remove(1)
        assert pci.irqs.msi.add(1).number == 1, "its place was set up before"


def test_vector_that_is_enabled_or_is_not(pci: PciDevice) -> None:
    with pci.irqs.msix.enable(1):
        with pytest.raises(BusyError, match=r"vector 0 of .* is enabled already"):
            pci.irqs.msix.add(0)
        for refused in (pci.irqs.msix.remove, pci.irqs.msix.trigger):
            with pytest.raises(ArgumentError, match=r"vector 4 of .* is not enabled"):
                refused(4)
        with pytest.raises(BoundsError, match=r"no vector 8 of .* MSI-X: it has 8 \(0 to 7\)"):
            pci.irqs.msix.add(8)
        with pytest.raises(BoundsError, match=r"no vector -1 of"):
            pci.irqs.msix.add(-1)


# -- masking


def test_mask_and_unmask(pci: PciDevice, device: FakeDevice) -> None:
    with pci.irqs.intx.enable():
        pci.irqs.intx.mask()
        pci.irqs.intx.unmask()
        assert device.set_irqs[1:] == [(0, MASK, 0, 1, b""), (0, UNMASK, 0, 1, b"")]
        with pytest.raises(BoundsError, match=r"no vector 1 of .* INTx: it has 1 \(0\)"):
            pci.irqs.intx.mask(1)


def test_kind_that_the_kernel_can_not_mask(pci: PciDevice) -> None:
    for refused in (pci.irqs.msix.mask, pci.irqs.msix.unmask):
        with pytest.raises(UnsupportedError, match=r"can't mask .* MSI-X; use the device's own mask registers"):
            refused()
    with pytest.raises(UnsupportedError, match="can't be masked, so there is nothing to unmask"):
        pci.irqs.msix.resample()


def test_resample(pci: PciDevice, device: FakeDevice, kernel: FakeKernel) -> None:
    with pytest.raises(ArgumentError, match="is not enabled"):
        pci.irqs.intx.resample()
    with nothing_left():
        with pci.irqs.intx.enable():
            kernel.failing["VFIO_DEVICE_SET_IRQS"] = 22
            with nothing_left(), pytest.raises(VfioIoctlError):
                pci.irqs.intx.resample()
            kernel.failing.clear()
            event = pci.irqs.intx.resample()
            assert device.set_irqs[-1] == (0, RESAMPLE, 0, 1, fds(event.fileno()))
            assert pci.irqs.intx.resample() is event
            event.signal()
        with pytest.raises(ClosedError):
            event.signal()


# -- resets


def test_rearm_sends_the_same_eventfds(pci: PciDevice, device: FakeDevice) -> None:
    pci.irqs.msix.enable(4)
    pci.irqs.msix.remove(1)
    pci.irqs.intx.enable()
    event = pci.irqs.intx.resample()
    before = [vector.fileno() for vector in pci.irqs.msix.vectors]
    del device.set_irqs[:]
    for index in (pci.irqs.msix, pci.irqs.intx, pci.irqs.msi):
        index.quiesce()
    assert device.set_irqs == [(MSIX, FIRE, 0, 0, b""), (0, FIRE, 0, 0, b"")]
    del device.set_irqs[:]
    for index in (pci.irqs.msix, pci.irqs.intx, pci.irqs.msi):
        index.rearm()
    (intx,) = pci.irqs.intx.vectors
    assert device.set_irqs == [
        (MSIX, ARM, 0, 4, fds(before[0], -1, *before[1:])),
        (0, ARM, 0, 1, fds(intx.fileno())),
        (0, RESAMPLE, 0, 1, fds(event.fileno())),
    ]
    pci.irqs.msix.trigger(3)
    assert pci.irqs.msix.vectors[-1].wait(1.0) == 1

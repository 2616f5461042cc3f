"""The life of a device: made, registered, used, unregistered, closed; and what fails on the way."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import pytest

import vfio_user
from tests.guest.leaks import nothing_left
from tests.unit.conftest import ADDRESS
from tests.unit.fake_device import CONFIG, FakeDevice
from tests.unit.fake_kernel import FakeKernel
from tests.unit.forking import in_child
from tests.unit.threads import eventually, run_together, start
from vfio_user import PCI_OPS, AddressSpace, PciDevice, VfioDevice, open_devices, pci_function
from vfio_user.device import CORE_OPS, DeviceOps, DeviceState
from vfio_user.errors import BoundsError, BusyError, ClosedError, DeadlineError, ForkedError, VfioIoctlError


class Refused(Exception):
    """What an op of these tests raises."""


def refuse(*args: object) -> None:
    raise Refused


def with_op(name: str, function: Any = refuse) -> DeviceOps:
    return dataclasses.replace(PCI_OPS, **{name: function})


def make(space: AddressSpace, ops: DeviceOps = CORE_OPS) -> VfioDevice:
    return VfioDevice(ADDRESS, ops, space.attach(pci_function(ADDRESS)), space)


def test_from_init_to_closed(device: FakeDevice) -> None:
    with nothing_left(), AddressSpace("type1v2") as space:
        vdev = make(space)
        assert repr(vdev) == f"<VfioDevice {ADDRESS} vfio init>"
        assert open_devices() == ()
        with pytest.raises(ClosedError, match=f"{ADDRESS} is init"), vdev.user():
            pass
        vdev.register()
        assert open_devices() == (vdev,)
        assert repr(vdev) == f"<VfioDevice {ADDRESS} vfio registered>"
        vdev.unregister()
        assert vdev.state is DeviceState.UNREGISTERED
        assert open_devices() == ()
        vdev.close()
        vdev.close()
        assert vdev.closed
        with pytest.raises(ClosedError):
            vdev.fileno()


def test_closing_what_was_never_registered(device: FakeDevice) -> None:
    with nothing_left(), AddressSpace("type1v2") as space:
        vdev = make(space, dataclasses.replace(CORE_OPS, open_device=refuse, close_device=refuse))
        vdev.close()
        assert vdev.closed


def test_registered_once(device: FakeDevice) -> None:
    with AddressSpace("type1v2") as space:
        vdev, other = make(space), make(space)
        vdev.register()
        for each in (vdev, other):
            with pytest.raises(BusyError, match=f"{ADDRESS} is open in this process already"):
                each.register()
        vdev.close()
        with pytest.raises(ClosedError, match="is closed; open it again"):
            vdev.register()
        other.register()
        assert open_devices() == (other,)
        other.close()


def test_open_op_may_open_another_device(device: FakeDevice) -> None:
    """As a variant driver does that needs its physical function."""
    opened: list[VfioDevice] = []
    with AddressSpace("type1v2") as space:
        second = VfioDevice("second", CORE_OPS, space.attach(pci_function(ADDRESS)), space)

        def open_device(vdev: VfioDevice) -> None:
            second.register()
            opened.append(second)

        first = make(space, dataclasses.replace(CORE_OPS, open_device=open_device))
        assert start(first.register).exception(10) is None
        assert open_devices() == (first, *opened)
        first.close()
        second.close()


# -- users


def test_unregister_waits_for_users(pci: PciDevice) -> None:
    vdev = pci.vdev
    with vdev.user() as fd:
        assert fd == vdev.fileno()
        waiter = start(lambda: vdev.unregister(30.0))
        assert eventually(lambda: vdev.state is DeviceState.UNREGISTERED)
        assert not eventually(waiter.done, 0.02)
        with pytest.raises(ClosedError, match="is unregistered"), vdev.user():
            pass
    assert waiter.exception(10) is None


def test_user_who_stays_is_a_deadline_and_not_a_loss(pci: PciDevice) -> None:
    with pci.vdev.user():
        begin = time.monotonic()
        with pytest.raises(DeadlineError, match=rf"1 calls are still in {ADDRESS} after 0\.02 s"):
            pci.vdev.close(0.02)
        assert 0.02 <= time.monotonic() - begin < 5
        assert not pci.closed
        assert pci.vdev.fileno() >= 0
    pci.close()
    assert pci.closed


def test_calls_in_other_threads_end_before_the_file_is_closed(pci: PciDevice, device: FakeDevice) -> None:
    def use() -> None:
        while True:
            assert pci.config.vendor_id == 0x1234

    users = [start(use) for _ in range(3)]
    time.sleep(0.02)
    pci.close()
    assert all(isinstance(user.exception(10), ClosedError) for user in users)


def test_threads_close_at_once(device: FakeDevice) -> None:
    closed: list[str] = []
    with nothing_left():
        ops = with_op("close_device", lambda vdev: closed.append(vdev.name))
        pci = vfio_user.open(ADDRESS, mode="type1v2", ops=ops)
        assert run_together(*[pci.close] * 4) == []
        assert pci.closed
        assert pci.address_space.closed
    assert closed == [ADDRESS]


# -- failures


@pytest.mark.parametrize(
    "op", ["init", "device_info", "region_info", "mappable_areas", "irq_info", "irq_label", "open_device"]
)
def test_failure_half_way_releases_everything(device: FakeDevice, op: str) -> None:
    with nothing_left():
        with pytest.raises(Refused):
            vfio_user.open(ADDRESS, mode="type1v2", ops=with_op(op))
        assert open_devices() == ()
        with vfio_user.open(ADDRESS, mode="type1v2") as pci:
            assert pci.config.vendor_id == 0x1234


def test_failure_half_way_detaches_from_a_shared_space(device: FakeDevice) -> None:
    with nothing_left():
        with AddressSpace("type1v2") as space, pytest.raises(Refused):
            vfio_user.open(ADDRESS, address_space=space, ops=with_op("irq_info"))
        assert space.closed


def test_device_without_a_configuration_space(device: FakeDevice) -> None:
    del device.regions[CONFIG]
    with nothing_left(), pytest.raises(BoundsError, match=rf"{ADDRESS} has no region 7; it has: 0"):
        vfio_user.open(ADDRESS, mode="type1v2")


@pytest.mark.parametrize("count", [0, 3])
def test_device_with_fewer_interrupt_kinds_than_pci_has(device: FakeDevice, count: int) -> None:
    device.num_irqs = count
    with nothing_left(), pytest.raises(BoundsError, match=f"has no interrupt index {count}"):
        vfio_user.open(ADDRESS, mode="type1v2")


def break_irqs(kernel: FakeKernel) -> None:
    kernel.failing["VFIO_DEVICE_SET_IRQS"] = 5


def test_interrupts_that_can_not_be_disabled_do_not_keep_a_device(device: FakeDevice, kernel: FakeKernel) -> None:
    with nothing_left():
        pci = vfio_user.open(ADDRESS, mode="type1v2")
        pci.irqs.msi.enable()
        break_irqs(kernel)
        with pytest.raises(VfioIoctlError, match="VFIO_DEVICE_SET_IRQS"):
            pci.close()
        assert pci.closed
        assert pci.address_space.closed


def test_close_op_that_fails_does_not_keep_a_device(device: FakeDevice) -> None:
    with nothing_left():
        pci = vfio_user.open(ADDRESS, mode="type1v2", ops=with_op("close_device"))
        with pytest.raises(Refused):
            pci.close()
        assert pci.closed
        assert pci.address_space.closed
        pci.close()


# -- fork


def test_child_is_refused_and_can_leave_the_block(pci: PciDevice) -> None:
    vectors = pci.irqs.msix.enable(2)
    attempts: tuple[Callable[[], object], ...] = (
        lambda: pci.config.vendor_id,
        pci.reset,
        lambda: pci.dma_alloc(4096),
        lambda: vectors[0].wait(1.0),
        pci.vdev.fileno,
    )

    def child() -> tuple[list[bool], bool]:
        refused = []
        for attempt in attempts:
            try:
                attempt()
            except ForkedError:
                refused.append(True)
        pci.close()
        return refused, pci.closed

    assert in_child(child) == repr(([True] * len(attempts), True))
    pci.irqs.msix.trigger(0)
    assert vectors[0].wait(1.0) == 1, "the parent's device works on"

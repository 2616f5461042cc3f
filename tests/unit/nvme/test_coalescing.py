"""Interrupts that the controller gathers: what is asked of it, what it refuses, and that nothing is lost by it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vfio_user.drivers.nvme import FeatureId, InterruptCoalescing, NvmeController, NvmeStatusError, NvmeUnsupportedError
from vfio_user.drivers.nvme.commands import flush
from vfio_user.errors import BoundsError

if TYPE_CHECKING:
    from tests.unit.nvme.model import Model
    from vfio_user.pci.device import PciDevice

    Device = tuple[Model, PciDevice]


@pytest.mark.parametrize(
    ("threshold", "delay", "value"),
    [(1, 0, 0), (8, 100e-6, 0x107), (256, 0.0255, 0xFFFF), (1, 101e-6, 0x200), (1, 0.0003, 0x300)],
)
def test_the_bits(threshold: int, delay: float, value: int) -> None:
    assert InterruptCoalescing(threshold, delay).to_int() == value
    there = InterruptCoalescing.from_int(value)
    assert there.threshold == threshold
    assert delay <= there.delay + 1e-9 < delay + 100e-6 + 1e-9


@pytest.mark.parametrize(("threshold", "delay"), [(0, 0), (257, 0), (1, -1e-4), (1, 0.026), (1, float("nan"))])
def test_what_does_not_fit(threshold: int, delay: float) -> None:
    with pytest.raises(BoundsError, match=r"give (1 to 256 completions|0 to 0\.0255 seconds)"):
        InterruptCoalescing(threshold, delay).to_int()


def test_fewer_interrupts_than_commands(device: Device) -> None:
    model, pci = device
    with NvmeController(pci) as ctrl:
        queue = ctrl.io_queues[0]
        ctrl.set_interrupt_coalescing(threshold=4, delay=0.001)
        assert ctrl.interrupt_coalescing() == InterruptCoalescing(4, 0.001)
        before = model.interrupts
        commands = queue.submit_many([(flush(1), None)] * 10)
        assert model.interrupts - before == 2
        # The last two have not interrupted yet; a wait looks by itself, too.
        queue.wait(commands)
        assert all(command.done() for command in commands)


def test_vectors_are_excepted(device: Device) -> None:
    model, pci = device
    with NvmeController(pci, io_queues=2) as ctrl:
        first, second = ctrl.io_queues
        assert first.vector is not None
        ctrl.set_interrupt_coalescing(threshold=4, delay=0.001)
        assert ctrl.vector_coalescing(first.vector.number)
        ctrl.set_vector_coalescing(first.vector.number, False)
        assert not ctrl.vector_coalescing(first.vector.number)
        for queue, interrupts in ((first, 4), (second, 1)):
            before = model.interrupts
            queue.wait(queue.submit_many([(flush(1), None)] * 4))
            assert model.interrupts - before == interrupts
        ctrl.delete_io_queue(first)
        ctrl.reset()
        assert not [key for key in model.features if key[0] == FeatureId.INTERRUPT_VECTOR_CONFIGURATION]
        with pytest.raises(BoundsError, match="vector 65536"):
            ctrl.vector_coalescing(65536)


def test_settings_survive_a_reset_but_not_the_end_of_the_driver(device: Device) -> None:
    model, pci = device
    with NvmeController(pci) as ctrl:
        ctrl.set_interrupt_coalescing(threshold=4, delay=0.001)
        ctrl.set_vector_coalescing(1, False)
        for reset in (ctrl.reset, pci.reset):
            model.features.clear()
            reset()
            assert ctrl.interrupt_coalescing() == InterruptCoalescing(4, 0.001)
            assert not ctrl.vector_coalescing(1)
    with ctrl:
        ctrl.reset()
        assert ctrl.interrupt_coalescing() == InterruptCoalescing(1, 0)


def test_a_controller_that_refuses(device: Device) -> None:
    model, pci = device
    model.fixed = frozenset({FeatureId.INTERRUPT_COALESCING, FeatureId.INTERRUPT_VECTOR_CONFIGURATION})
    with NvmeController(pci) as ctrl:
        with pytest.raises(
            NvmeUnsupportedError, match=r"interrupt coalescing be changed \(Feature Not Changeable.*IrqPoller"
        ):
            ctrl.set_interrupt_coalescing(4, 0.001)
        with pytest.raises(NvmeUnsupportedError, match="interrupt vector configuration be changed"):
            ctrl.set_vector_coalescing(1, False)
        ctrl.reset()
        model.status = lambda qid, entry: 0x4006 if entry.cdw10 == FeatureId.INTERRUPT_COALESCING else 0
        with pytest.raises(NvmeStatusError, match="Internal Error"):
            ctrl.set_interrupt_coalescing(4, 0.001)

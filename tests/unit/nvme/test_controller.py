"""The life of a controller, good and bad, on the model."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from vfio_user.drivers.nvme import (
    NvmeAbortedError,
    NvmeController,
    NvmeDeadlineError,
    NvmeFatalError,
    NvmeNotRunningError,
    NvmeStatusError,
    NvmeUnsupportedError,
)
from vfio_user.drivers.nvme.commands import flush
from vfio_user.drivers.nvme.opcodes import AdminOpcode, FeatureId, IoOpcode
from vfio_user.errors import ArgumentError, BoundsError, DeviceGoneError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.unit.nvme.model import Model
    from vfio_user.drivers.nvme.commands import SubmissionEntry
    from vfio_user.pci.device import PciDevice

    Device = tuple[Model, PciDevice]


def is_io(qid: int, entry: SubmissionEntry) -> bool:
    return qid != 0


def is_admin(opcode: int) -> Callable[[int, SubmissionEntry], bool]:
    return lambda qid, entry: qid == 0 and entry.opcode == opcode


@pytest.mark.parametrize("interrupts", [True, False])
def test_probe_and_remove(device: Device, interrupts: bool) -> None:
    model, pci = device
    ctrl = NvmeController(pci, io_queues=3, interrupts=interrupts)
    assert ctrl.state.name == "STOPPED"
    with ctrl:
        assert ctrl.state.name == "RUNNING"
        assert (ctrl.identify.model, ctrl.identify.serial) == ("A model", "MODEL1")
        assert [queue.qid for queue in ctrl.io_queues] == [1, 2, 3]
        assert set(model.sqs) == set(model.cqs) == {0, 1, 2, 3}
        assert [model.cqs[qid].vector for qid in (1, 2, 3)] == ([1, 2, 3] if interrupts else [None] * 3)
        assert len(model.vectors) == (4 if interrupts else 0)
        assert ctrl.max_transfer == 128 << 10
        (namespace,) = ctrl.namespaces
        assert (namespace.nsid, namespace.block_size, namespace.num_blocks) == (1, 512, 16384)
    assert [entry.opcode for qid, entry in model.log[-6:]] == [AdminOpcode.DELETE_SQ, AdminOpcode.DELETE_CQ] * 3
    assert model.cc == 0
    assert not model.iommu.maps
    with ctrl:  # and again
        assert ctrl.namespaces[0].read(0, 1) == bytes(512)


def test_io_of_all_sizes_and_kinds(device: Device) -> None:
    model, pci = device
    with NvmeController(pci, io_entries=4) as ctrl, pci.dma_alloc(1 << 20) as buffer:
        namespace = ctrl.namespaces[0]
        data = os.urandom(3 << 20)
        namespace.write(7, data)
        assert model.disk[7 * 512 : 7 * 512 + len(data)] == data
        assert namespace.read(7, len(data) // 512) == data
        namespace.read_into(buffer, 7)
        assert bytes(buffer.view) == data[: 1 << 20]
        namespace.write_from(buffer[4:1028], 0)
        assert model.disk[:1024] == data[4:1028]
        namespace.write_zeroes(0, 1)
        assert namespace.read(0, 2) == bytes(512) + data[516:1028]
        namespace.deallocate([(1, 1), (20, 5)])
        assert namespace.read(1, 1) == bytes(512)
        namespace.flush()
        assert (1, IoOpcode.FLUSH) in [(qid, entry.opcode) for qid, entry in model.log]
        assert ctrl.io_queues[0].num_in_flight == 0
        assert ctrl.bounce.num_taken == ctrl.pages.num_taken == 0


def test_large_ranges_are_cut_to_what_a_command_takes(device: Device) -> None:
    model, pci = device
    model.num_blocks = 1 << 33
    with NvmeController(pci) as ctrl:
        namespace = ctrl.namespaces[0]
        model.status = lambda qid, entry: 0x4004 if entry.opcode == IoOpcode.DATASET_MANAGEMENT else 0
        before = len(model.log)
        with pytest.raises(NvmeStatusError, match="Data Transfer Error"):
            namespace.deallocate([(0, 1 << 33)] * 100)
        assert model.log[before][1].cdw10 == 255
        model.status = lambda qid, entry: 0
        model._io = lambda entry: (0, 0)  # type: ignore[method-assign]
        before = len(model.log)
        namespace.write_zeroes(5, 3 << 16, deallocate=True)
        sent = [(e.cdw10, e.cdw12 & 0xFFFF, e.cdw12 >> 25 & 1) for _, e in model.log[before:]]
        assert sent == [(5, 0xFFFF, 1), (5 + (1 << 16), 0xFFFF, 1), (5 + (2 << 16), 0xFFFF, 1)]


def test_logs_and_features(device: Device) -> None:
    _, pci = device
    with NvmeController(pci) as ctrl:
        assert ctrl.smart().temperature_kelvin == 0x143
        assert ctrl.firmware_slots().active_slot == 0
        assert ctrl.error_log() == []
        assert ctrl.get_feature(FeatureId.VOLATILE_WRITE_CACHE) == 6
        assert ctrl.set_feature(FeatureId.NUM_QUEUES, 0) == 0


def test_many_namespaces_and_old_controllers(device: Device) -> None:
    model, pci = device
    model.namespaces = dict.fromkeys(range(1, 1500), 12)
    with NvmeController(pci, io_queues=0) as ctrl:
        assert ctrl.active_namespaces() == list(range(1, 1500))
        model.version = 0x10000
        model.namespaces = {1: 9, 2: 9}
    with NvmeController(pci) as ctrl:
        assert [each.nsid for each in ctrl.namespaces] == [1, 2]
        assert ctrl.namespaces[0].descriptors is None


# -- queues


def test_queues_come_and_go(device: Device) -> None:
    model, pci = device
    with NvmeController(pci) as ctrl:
        polled = ctrl.create_io_queue(entries=8, interrupts=False)
        assert (polled.qid, polled.entries, polled.vector) == (2, 8, None)
        third = ctrl.create_io_queue()
        assert third.vector is not None
        assert ctrl.namespaces[0].read(0, 4, queue=polled) == bytes(2048)
        ctrl.delete_io_queue(polled)
        assert set(model.sqs) == {0, 1, 3}
        assert ctrl.create_io_queue().qid == 2
        with pytest.raises(ArgumentError, match="no I/O queue of"):
            ctrl.delete_io_queue(polled)
        with pytest.raises(ArgumentError, match="no I/O queue of"):
            ctrl.delete_io_queue(ctrl.admin)
        with pytest.raises(NvmeNotRunningError, match="deleted"):
            ctrl.namespaces[0].read(0, 1, queue=polled)
        for _ in range(4, 9):
            ctrl.create_io_queue(interrupts=False)
        with pytest.raises(NvmeUnsupportedError, match="grants 8 I/O queues"):
            ctrl.create_io_queue(interrupts=False)


def test_deleting_a_queue_ends_its_commands(device: Device) -> None:
    model, pci = device
    with NvmeController(pci, io_queues=2) as ctrl:
        model.hold = is_io
        queue = ctrl.io_queues[1]
        command = queue.submit(flush(1))
        ctrl.delete_io_queue(queue)
        with pytest.raises(NvmeStatusError, match="SQ Deletion"):
            command.result()


def test_a_refused_queue_leaves_nothing(device: Device) -> None:
    model, pci = device
    with NvmeController(pci) as ctrl:
        model.status = lambda qid, entry: 0x4102 if entry.opcode == AdminOpcode.CREATE_SQ else 0
        maps, vectors = dict(model.iommu.maps), dict(model.vectors)
        with pytest.raises(NvmeStatusError, match="Invalid Queue Size"):
            ctrl.create_io_queue()
        assert (model.iommu.maps, model.vectors) == (maps, vectors)
        assert set(model.cqs) == {0, 1}


# -- bad input


@pytest.mark.parametrize(
    "options",
    [
        {"admin_entries": 1},
        {"admin_entries": 4097},
        {"io_queues": -1},
        {"io_entries": 1},
        {"io_entries": 65537},
        {"timeout": 0},
    ],
)
def test_impossible_options_are_refused_before_anything_happens(device: Device, options: dict[str, int]) -> None:
    model, pci = device
    with pytest.raises(ArgumentError, match=next(iter(options))):
        NvmeController(pci, **options)  # type: ignore[arg-type]
    assert model.log == []


def test_options_that_this_controller_cannot_do(device: Device) -> None:
    model, pci = device
    with pytest.raises(BoundsError, match="2 to 1024"), NvmeController(pci, io_entries=2048):
        raise AssertionError
    with pytest.raises(NvmeUnsupportedError, match="grants 8"), NvmeController(pci, io_queues=9):
        raise AssertionError
    assert model.cc == 0
    assert not model.iommu.maps


def test_another_kind_of_device_is_refused(device: Device) -> None:
    _, pci = device
    pci.config.class_code = 0x020000  # type: ignore[misc]
    with pytest.raises(UnsupportedError, match="does not drive"):
        NvmeController(pci)


def test_use_before_and_after(device: Device) -> None:
    _, pci = device
    ctrl = NvmeController(pci)
    with pytest.raises(NvmeNotRunningError, match="with block"):
        ctrl.smart()
    with ctrl:
        namespace, queue = ctrl.namespaces[0], ctrl.io_queues[0]
    for use in (
        lambda: namespace.read(0, 1),
        lambda: queue.submit(flush(1)),
        lambda: ctrl.identify,
        ctrl.smart,
        ctrl.active_namespaces,
        ctrl.create_io_queue,
    ):
        with pytest.raises(NvmeNotRunningError):
            use()
    assert ctrl.io_queues == ()


# -- a controller that misbehaves


@pytest.mark.parametrize(
    ("attribute", "error", "words"),
    [
        ("gone", DeviceGoneError, "all-ones"),
        ("never_ready", NvmeDeadlineError, "did not start"),
        ("fatal", NvmeFatalError, "CSTS.CFS"),
    ],
)
def test_probe_fails_cleanly(device: Device, attribute: str, error: type[Exception], words: str) -> None:
    model, pci = device
    setattr(model, attribute, True)
    if attribute == "fatal":
        model.never_ready = True
    with pytest.raises(error, match=words), NvmeController(pci):
        raise AssertionError
    assert not model.iommu.maps
    for name in ("gone", "never_ready", "fatal"):
        setattr(model, name, False)
    with NvmeController(pci) as ctrl:
        assert ctrl.namespaces[0].read(0, 1) == bytes(512)


@pytest.mark.parametrize(("cap", "words"), [(0, "no capabilities"), (1 << 44 | 1023, "NVM command set")])
def test_a_controller_without_the_nvm_command_set(device: Device, cap: int, words: str) -> None:
    model, pci = device
    model.cap = cap
    with pytest.raises(NvmeUnsupportedError, match=words), NvmeController(pci):
        raise AssertionError


def test_an_admin_command_that_fails_unwinds_the_probe(device: Device) -> None:
    model, pci = device
    for opcode in (AdminOpcode.IDENTIFY, AdminOpcode.SET_FEATURES, AdminOpcode.CREATE_CQ):
        model.status = lambda qid, entry, opcode=opcode: 0x4002 if entry.opcode == opcode else 0  # type: ignore[misc]
        with pytest.raises(NvmeStatusError, match="Invalid Field"), NvmeController(pci):
            raise AssertionError
        assert not model.iommu.maps
        assert model.cc == 0


def test_shutdown_has_a_deadline_and_everything_is_given_back(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    model, pci = device
    monkeypatch.setattr("vfio_user.drivers.nvme.lifecycle._SHUTDOWN_TIMEOUT", 0.05)
    model.never_shuts_down = True
    with pytest.raises(NvmeDeadlineError, match="shut down"), NvmeController(pci):
        pass
    assert not model.iommu.maps


def test_a_controller_that_does_not_stop_is_cut_off_from_memory(device: Device) -> None:
    model, pci = device
    ctrl = NvmeController(pci)
    ctrl.start()
    model.hold = is_io
    command = ctrl.io_queues[0].submit(flush(1))
    model.never_stops = True
    with pytest.raises(NvmeDeadlineError, match="did not stop"):
        ctrl.stop()
    with pytest.raises(NvmeStatusError, match="SQ Deletion"):
        command.result()
    assert not model.iommu.maps


@pytest.mark.parametrize("attribute", ["gone", "zapped"])
def test_removal_of_a_device_that_is_gone_is_clean(device: Device, attribute: str) -> None:
    model, pci = device
    with NvmeController(pci) as ctrl:
        model.hold = is_io
        command = ctrl.io_queues[0].submit(flush(1))
        setattr(model, attribute, True)
    with pytest.raises(NvmeAbortedError, match="stopped"):
        command.result()
    assert not model.iommu.maps


@pytest.mark.parametrize(("attribute", "error"), [("gone", DeviceGoneError), ("fatal", NvmeFatalError)])
@pytest.mark.parametrize("interrupts", [True, False])
def test_a_wait_notices_a_controller_that_dies(
    device: Device, attribute: str, error: type[Exception], interrupts: bool
) -> None:
    model, pci = device
    with NvmeController(pci, interrupts=interrupts) as ctrl:
        model.hold = is_io
        command = ctrl.io_queues[0].submit(flush(1))
        setattr(model, attribute, True)
        begin = time.monotonic()
        with pytest.raises(error):
            command.wait(20)
        assert time.monotonic() - begin < 5
        assert not command.done()

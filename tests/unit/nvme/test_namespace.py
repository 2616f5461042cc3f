"""What a namespace refuses, and what a transfer of many commands does when one of them fails."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from vfio_user.drivers.nvme import (
    IoOpcode,
    NvmeController,
    NvmeStatusError,
    NvmeUnsupportedError,
)
from vfio_user.drivers.nvme.commands import flush
from vfio_user.drivers.nvme.geometry import Geometry, spans
from vfio_user.drivers.nvme.identify_namespace import LbaFormat
from vfio_user.errors import AlignmentError, ArgumentError, BoundsError, IovaError

if TYPE_CHECKING:
    from tests.unit.nvme.model import Model
    from vfio_user.drivers.nvme.commands import SubmissionEntry
    from vfio_user.pci.device import PciDevice

    Device = tuple[Model, PciDevice]


def test_bad_input_is_refused_before_the_device_hears_of_it(device: Device) -> None:
    model, pci = device
    with NvmeController(pci) as ctrl, pci.dma_alloc(8192) as buffer:
        namespace = ctrl.namespaces[0]
        last = namespace.num_blocks
        model.log.clear()
        for lba, count in ((-1, 1), (last, 1), (last - 1, 2), (0, 0), (0, -1), (1 << 64, 1)):
            for call in (namespace.read, namespace.write_zeroes):
                with pytest.raises(BoundsError):
                    call(lba, count)
            with pytest.raises(BoundsError):
                namespace.deallocate([(0, 1), (lba, count)])
        for data in (bytes(511), bytes(513)):
            with pytest.raises(AlignmentError, match="blocks of 512 bytes"):
                namespace.write(0, data)
        with pytest.raises(BoundsError, match="outside of namespace 1"):
            namespace.write(last - 1, bytes(1024))
        with pytest.raises(BoundsError, match="the least is 1"):
            namespace.write(0, b"")
        with pytest.raises(ArgumentError, match="str is no memory"):
            namespace.write(0, "text")  # type: ignore[arg-type]
        with pytest.raises(ArgumentError, match="contiguous"):
            namespace.read_into(buffer.view[::2], 0)
        with pytest.raises(AlignmentError, match="multiple of 4"):
            namespace.read_into(buffer[1:513], 0)
        with pytest.raises(IovaError, match="not mapped"):
            namespace.write_from(bytearray(512), 0)
        with pytest.raises(ArgumentError, match="negative"):
            namespace.read(0, 1, timeout=-1)
        assert [entry for _, entry in model.log if entry.opcode != IoOpcode.READ] == []
        assert ctrl.bounce.num_taken == ctrl.pages.num_taken == ctrl.io_queues[0].num_in_flight == 0
        assert namespace.read(last - 1, 1) == bytes(512)


def test_a_namespace_with_metadata_is_refused() -> None:
    with pytest.raises(NvmeUnsupportedError, match="8 bytes of metadata"):
        Geometry(1, LbaFormat(8, 9, 0), 100).check(0, 1)


def test_commands_that_the_controller_lacks(device: Device) -> None:
    model, pci = device
    identify = model._identify
    model._identify = lambda entry: identify(entry)[:520] + bytes(4096 - 520)  # type: ignore[method-assign]
    model.namespaces = {1: 9}
    ctrl = NvmeController(pci)
    ctrl.start()
    model._identify = identify  # type: ignore[method-assign]
    namespace = ctrl.namespaces[0]
    with pytest.raises(NvmeUnsupportedError, match="write\\(\\) zeroes"):
        namespace.write_zeroes(0, 1)
    with pytest.raises(NvmeUnsupportedError, match="Dataset Management"):
        namespace.deallocate([(0, 1)])
    ctrl.stop()


def test_blocks_larger_than_a_command_are_refused(device: Device) -> None:
    model, pci = device
    model.namespaces = {1: 20}
    with NvmeController(pci) as ctrl, pci.dma_alloc(1 << 20) as buffer:
        namespace = ctrl.namespaces[0]
        assert namespace.block_size == 1 << 20
        for call in (lambda: namespace.read(0, 1), lambda: namespace.read_into(buffer, 0)):
            with pytest.raises(NvmeUnsupportedError, match="131072 at a time"):
                call()
        assert ctrl.bounce.num_taken == 0


def test_spans() -> None:
    assert spans(5, 10, 4) == [(5, 4), (9, 4), (13, 2)]
    assert spans(0, 4, 4) == [(0, 4)]


def test_the_first_error_of_a_transfer_comes_out_and_nothing_stays_in_flight(device: Device) -> None:
    model, pci = device
    with NvmeController(pci, io_entries=4) as ctrl, pci.dma_alloc(2 << 20) as buffer:
        namespace = ctrl.namespaces[0]
        bad = 2 * 256  # the third command

        def status(qid: int, entry: SubmissionEntry) -> int:
            return 0x4281 if qid and entry.cdw10 == bad else 0

        model.status = status
        model.log.clear()
        with pytest.raises(NvmeStatusError, match="Unrecovered Read Error"):
            namespace.read_into(buffer, 0)
        assert len(model.log) <= 6  # no more were sent after the error
        assert ctrl.io_queues[0].num_in_flight == 0
        with pytest.raises(NvmeStatusError):
            namespace.read(0, 4096)
        assert ctrl.bounce.num_taken == 0
        namespace.read_into(buffer[: 1 << 18], 0)


def test_a_transfer_waits_for_room_that_others_take(device: Device) -> None:
    model, pci = device
    with NvmeController(pci, io_entries=4) as ctrl:
        namespace, queue = ctrl.namespaces[0], ctrl.io_queues[0]
        model.hold = lambda qid, entry: qid != 0 and entry.opcode == IoOpcode.FLUSH
        others = [queue.submit(flush(1)) for _ in range(3)]
        done = threading.Event()

        def work() -> None:
            namespace.write(0, b"x" * 4096)
            done.set()

        thread = threading.Thread(target=work)
        thread.start()
        time.sleep(0.05)
        assert not done.is_set()
        with queue._lock:
            model.release()
        thread.join(5)
        assert done.is_set()
        queue.wait(others)
        assert model.disk[:4096] == b"x" * 4096


def test_threads_keep_to_their_queue_and_take_turns(device: Device) -> None:
    _, pci = device
    with NvmeController(pci, io_queues=3) as ctrl:
        used: list[int] = []

        def work() -> None:
            used.append(ctrl.default_queue().qid)
            assert ctrl.default_queue().qid == used[-1]

        for _ in range(6):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
        assert used == [1, 2, 3, 1, 2, 3]

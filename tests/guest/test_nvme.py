"""NVMe on the emulated controller: what it says of itself, and that data comes back as it was written."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

import vfio_user
from tests.guest.leaks import nothing_left
from tests.guest.nvme_helpers import Find, controller
from vfio_user.drivers.nvme import (
    FeatureId,
    NvmeController,
    NvmeStatusError,
    NvmeUnsupportedError,
    SubmissionEntry,
    Version,
)
from vfio_user.drivers.nvme.commands import read
from vfio_user.errors import AlignmentError, BoundsError, IovaError, UnsupportedError
from vfio_user.pci import Command


def test_identify_says_what_qemu_was_given(vfio_device: Find, iommu_mode: str) -> None:
    with nothing_left(), controller(vfio_device, iommu_mode) as (pci, ctrl):
        assert pci.config.command & Command.MASTER
        identify = ctrl.identify
        assert identify.serial == "VU-nvme0"
        assert identify.model == "QEMU NVMe Ctrl"
        assert (identify.vendor_id, pci.config.vendor_id) == (0x1B36, 0x1B36)
        assert ctrl.version >= Version(1, 3)
        assert identify.version == ctrl.version
        assert identify.subsystem_nqn.startswith("nqn.")
        assert identify.power_states
        assert ctrl.max_transfer == 512 << 10
        (nsid,) = ctrl.active_namespaces()
        (namespace,) = ctrl.namespaces
        assert namespace.nsid == nsid == 1
        assert namespace.size == 256 << 20
        assert namespace.block_size == 512
        assert namespace.identify.num_blocks == namespace.num_blocks == 512 << 10
        assert namespace.descriptors is not None


def test_it_leaves_the_device_quiet(vfio_device: Find) -> None:
    with vfio_user.open(vfio_device("nvme").address) as pci:
        with NvmeController(pci) as ctrl:
            assert ctrl.registers.status().ready
        assert not pci.config.command & Command.MASTER
        assert pci.irqs.msix.vectors == ()
        assert not ctrl.registers.status().ready
        assert pci.address_space.mappings == ()
        with NvmeController(pci) as ctrl:  # and it can be had again
            assert ctrl.namespaces[0].read(0, 1)


def test_orderly_shutdown_is_seen_by_the_controller(vfio_device: Find) -> None:
    with vfio_user.open(vfio_device("nvme").address) as pci, NvmeController(pci) as ctrl:
        with pytest.raises(NvmeStatusError, match="Invalid Queue Identifier"):
            ctrl.admin_commands.delete_pair(7)
        ctrl.registers.shutdown(5.0)
        status = ctrl.registers.status()
        assert status.shutdown_complete
        assert not status.fatal
        ctrl.reset()
        assert len(ctrl.namespaces[0].read(0, 1)) == 512


def test_logs_and_features(vfio_device: Find) -> None:
    with controller(vfio_device) as (_, ctrl):
        before = ctrl.smart()
        assert 250 < before.temperature_kelvin < 400
        ctrl.namespaces[0].read(0, 1)
        after = ctrl.smart()
        assert after.host_reads > before.host_reads
        assert ctrl.firmware_slots().active_slot == 1
        assert ctrl.error_log() == []
        assert ctrl.get_feature(FeatureId.NUM_QUEUES) & 0xFFFF > 0
        cache = ctrl.get_feature(FeatureId.VOLATILE_WRITE_CACHE)
        ctrl.set_feature(FeatureId.VOLATILE_WRITE_CACHE, cache ^ 1)
        assert ctrl.get_feature(FeatureId.VOLATILE_WRITE_CACHE) == cache ^ 1
        ctrl.set_feature(FeatureId.VOLATILE_WRITE_CACHE, cache)


@pytest.mark.parametrize("interrupts", [True, False], ids=["interrupts", "polled"])
def test_data_comes_back(vfio_device: Find, iommu_mode: str, interrupts: bool) -> None:
    with nothing_left(), controller(vfio_device, iommu_mode, interrupts=interrupts) as (_, ctrl):
        namespace = ctrl.namespaces[0]
        for lba, num_blocks in ((0, 1), (1, 7), (namespace.num_blocks - 3, 3), (1000, 2048), (4096, 5001)):
            data = os.urandom(num_blocks * namespace.block_size)
            namespace.write(lba, data)
            namespace.flush()
            assert namespace.read(lba, num_blocks) == data


def test_transfers_beyond_mdts_and_inside_of_pages(vfio_device: Find) -> None:
    with controller(vfio_device) as (pci, ctrl), pci.dma_alloc(6 << 20) as buffer:
        namespace = ctrl.namespaces[0]
        assert ctrl.max_transfer < 3 << 20
        data = os.urandom(3 << 20)
        for offset in (0, 4, 2048, 4092):
            source = buffer[offset : offset + len(data)]
            source[:] = data
            namespace.write_from(source, lba=64)
            target = buffer[(3 << 20) - 4096 + offset : (6 << 20) - 4096 + offset]
            target[:] = bytes(len(data))
            namespace.read_into(target, lba=64)
            assert bytes(target.view) == data, offset


def test_memory_of_all_kinds(vfio_device: Find) -> None:
    with controller(vfio_device) as (pci, ctrl):
        namespace = ctrl.namespaces[0]
        pattern = random.Random(7).randbytes(1 << 16)
        namespace.write(0, pattern)
        with pci.dma_alloc(1 << 16, backing="memfd") as buffer:
            array = buffer.array("<u4", (16, 1024))
            namespace.read_into(array[3:5], lba=8)
            assert array[3:5].tobytes() == pattern[4096:12288]
            array[5] = 0x01020304
            namespace.write_from(array[5], lba=8)
            assert namespace.read(8, 8) == b"\x04\x03\x02\x01" * 1024
            queue = ctrl.io_queues[0]
            queue.execute(read(1, 0, 16), [buffer[1024:4096], buffer[8192:12288], buffer[32768:33792]])
            parts = (buffer[1024:4096], buffer[8192:12288], buffer[32768:33792])
            assert b"".join(bytes(part.view) for part in parts) == namespace.read(0, 16)


def test_zeroes_and_deallocation(vfio_device: Find) -> None:
    with controller(vfio_device) as (_, ctrl):
        namespace = ctrl.namespaces[0]
        block = namespace.block_size
        namespace.write(100, b"\xff" * 64 * block)
        namespace.write_zeroes(110, 20)
        assert namespace.read(100, 64) == b"\xff" * 10 * block + bytes(20 * block) + b"\xff" * 34 * block
        namespace.deallocate([(100, 4), (140, 8)])
        assert namespace.read(130, 10) == b"\xff" * 10 * block
        if namespace.identify.deallocate_features & 0b111 == 1:
            assert namespace.read(100, 4) == bytes(4 * block)
            assert namespace.read(140, 8) == bytes(8 * block)


def test_two_controllers_share_an_address_space(vfio_device: Find) -> None:
    addresses = vfio_device("nvme0").address, vfio_device("nvme1").address
    with (
        vfio_user.open(addresses[0]) as first,
        vfio_user.open(addresses[1], address_space=first.address_space) as second,
        NvmeController(first) as one,
        NvmeController(second) as two,
        first.dma_alloc(1 << 16) as buffer,
    ):
        assert two.identify.serial == "VU-nvme1"
        data = os.urandom(1 << 16)
        one.namespaces[0].write(50, data)
        one.namespaces[0].read_into(buffer, lba=50)
        two.namespaces[0].write_from(buffer, lba=7)
        assert two.namespaces[0].read(7, 128) == data


def test_bad_input_reaches_no_device(vfio_device: Find) -> None:
    with controller(vfio_device) as (pci, ctrl):
        namespace = ctrl.namespaces[0]
        before = ctrl.smart()
        with pci.dma_alloc(8192) as buffer:
            with pytest.raises(BoundsError, match="outside of namespace 1"):
                namespace.read(namespace.num_blocks, 1)
            with pytest.raises(AlignmentError, match="whole number of blocks"):
                namespace.write(0, bytes(100))
            with pytest.raises(AlignmentError, match="multiple of 4"):
                namespace.read_into(buffer[2:514], lba=0)
            with pytest.raises(IovaError, match="not mapped"):
                namespace.read_into(bytearray(512), lba=0)
            gone = buffer[:512]
        with pytest.raises(IovaError, match="closed"):
            namespace.read_into(gone, lba=0)
        after = ctrl.smart()
        assert (after.host_reads, after.host_writes) == (before.host_reads, before.host_writes)


def test_the_controllers_errors_have_their_names(vfio_device: Find) -> None:
    with controller(vfio_device) as (pci, ctrl), pci.dma_alloc(4096) as buffer:
        queue = ctrl.io_queues[0]
        namespace = ctrl.namespaces[0]
        with pytest.raises(NvmeStatusError) as caught:
            queue.execute(read(1, namespace.num_blocks, 1), buffer[:512])
        assert (caught.value.name, caught.value.dnr) == ("LBA Out of Range", True)
        with pytest.raises(NvmeStatusError, match="Invalid Namespace or Format"):
            queue.execute(read(0xFFFF, 0, 1), buffer[:512])
        with pytest.raises(NvmeStatusError, match="Invalid Command Opcode"):
            queue.execute(SubmissionEntry(0x7F, nsid=1))
        with pytest.raises(NvmeStatusError, match="Invalid Command Opcode"):
            ctrl.admin.execute(SubmissionEntry(0x7F))
        with pytest.raises(NvmeStatusError, match="Invalid Field in Command"):
            ctrl.get_feature(0xEE)
        assert len(namespace.read(0, 1)) == 512
        assert queue.num_in_flight == 0


def test_options_that_do_not_fit(vfio_device: Find) -> None:
    with nothing_left(), vfio_user.open(vfio_device("nvme").address) as pci:
        most = NvmeController(pci, io_queues=0)
        with most:
            limit = most.registers.capabilities.max_queue_entries
        with pytest.raises(BoundsError, match=f"2 to {limit}"), NvmeController(pci, io_entries=limit + 1):
            raise AssertionError
        with (
            pytest.raises(NvmeUnsupportedError, match="I/O queues"),
            NvmeController(pci, io_queues=1000, interrupts=False),
        ):
            raise AssertionError
        with pytest.raises((BoundsError, UnsupportedError), match="MSI-X"), NvmeController(pci, io_queues=500):
            raise AssertionError
        assert pci.address_space.mappings == ()
        with NvmeController(pci, io_queues=4, io_entries=limit) as ctrl:
            assert [queue.num_free for queue in ctrl.io_queues] == [limit - 1] * 4
            for queue in ctrl.io_queues:
                assert len(ctrl.namespaces[0].read(0, 1, queue=queue)) == 512


@pytest.mark.parametrize("example", ["nvme_identify", "nvme_read_write"])
def test_examples(vfio_device: Find, example: str) -> None:
    script = Path(__file__).resolve().parents[2] / "examples" / f"{example}.py"
    assert len(script.read_text().splitlines()) <= 60
    done = subprocess.run(
        [sys.executable, script, vfio_device("nvme").address], capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0, done.stderr
    assert ("VU-nvme0" if example == "nvme_identify" else "equal") in done.stdout

"""An NVMe controller in Python, for what no emulator does on request: it lies, hangs, forgets and disappears.

It sees memory only through an IOMMU that knows what was mapped, so a stale or wrong address is an error here too.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import cast
from unittest import mock

from vfio_user.addresses import Iova, IovaRange, PciAddress
from vfio_user.device.vector import IrqVector
from vfio_user.drivers.nvme import regs
from vfio_user.drivers.nvme.commands import Completion, SubmissionEntry
from vfio_user.drivers.nvme.opcodes import AdminOpcode, Cns, FeatureId, IoOpcode, LogPageId
from vfio_user.drivers.nvme.registers import NvmeRegisters
from vfio_user.errors import DeviceGoneError, ZappedError
from vfio_user.iommu import AddressSpace, IommuMode
from vfio_user.iommu.info import IommuInfo
from vfio_user.kernel.fd import OwnedFd
from vfio_user.kernel.sysfs import PciFunction, VfioNode
from vfio_user.pci.device import PciDevice

PAGE = 4096
BLOCK = 512
LBA_OUT_OF_RANGE = 0x4080


class Iommu:
    """A back end of `AddressSpace` that translates in Python."""

    mode = IommuMode.TYPE1V2
    maps_files = False
    emptied = False

    def __init__(self) -> None:
        self.maps: dict[int, tuple[int, int]] = {}

    def attach(self, node: VfioNode, *, vf_token: str | None = None) -> OwnedFd:
        return OwnedFd(os.open(os.devnull, os.O_RDWR), "model")

    def info(self) -> IommuInfo:
        return IommuInfo(PAGE, (IovaRange(0x1000, (1 << 39) - 1),), 65535)

    def map(self, iova: Iova | None, vaddr: int, size: int, *, read: bool = True, write: bool = True) -> Iova:
        assert iova is not None
        self.maps[iova] = (vaddr, size)
        return iova

    def map_file(
        self, iova: Iova | None, fd: int, offset: int, size: int, *, read: bool = True, write: bool = True
    ) -> Iova:
        raise AssertionError("the driver maps no files")

    def unmap(self, iova: int, size: int) -> int:
        return self.maps.pop(iova)[1]

    def unmap_all(self) -> int:
        total = sum(size for _, size in self.maps.values())
        self.maps.clear()
        return total

    def close(self) -> None:
        self.maps.clear()

    def _vaddr(self, iova: int, size: int) -> int:
        for start, (vaddr, length) in self.maps.items():
            if start <= iova and iova + size <= start + length:
                return vaddr + iova - start
        raise AssertionError(f"DMA to IOVA {iova:#x}, {size} bytes, which is not mapped")

    def load(self, iova: int, size: int) -> bytes:
        return ctypes.string_at(self._vaddr(iova, size), size)

    def store(self, iova: int, data: bytes) -> None:
        ctypes.memmove(self._vaddr(iova, len(data)), data, len(data))


@dataclass
class Queue:
    """One ring as the controller knows it."""

    base: int
    entries: int
    cqid: int = 0
    vector: int | None = None
    position: int = 0
    phase: int = 1


@dataclass
class Model:
    """The controller. Attributes change how it behaves."""

    iommu: Iommu
    num_blocks: int = 16384
    mdts: int = 5
    version: int = 0x10400
    max_queues: int = 8
    namespaces: dict[int, int] = field(default_factory=lambda: {1: 9})
    hold: Callable[[int, SubmissionEntry], bool] = lambda qid, entry: False
    status: Callable[[int, SubmissionEntry], int] = lambda qid, entry: 0
    gone: bool = False
    zapped: bool = False
    fatal: bool = False
    never_ready: bool = False
    never_stops: bool = False
    never_shuts_down: bool = False
    aborts: bool = False
    fixed: frozenset[int] = frozenset()
    cap: int = (1 << 37) | (1 << 24) | 1023
    log: list[tuple[int, SubmissionEntry]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.cc = self.csts = self.aqa = self.asq = self.acq = 0
        self.sqs: dict[int, Queue] = {}
        self.cqs: dict[int, Queue] = {}
        self.held: list[tuple[int, SubmissionEntry]] = []
        self.disk = bytearray(self.num_blocks * BLOCK)
        self.vectors: dict[int, IrqVector] = {}
        self.bells: list[tuple[int, int]] = []
        self.granted = 1
        self.features: dict[tuple[int, int], int] = {}
        self.gathered: dict[int, int] = {}
        self.interrupts = 0

    # -- registers

    def read32(self, offset: int) -> int:
        self._check()
        if self.gone:
            return 0xFFFF_FFFF
        if offset == NvmeRegisters.csts.offset:
            return self.csts | self.fatal << 1
        return {
            NvmeRegisters.vs.offset: self.version,
            NvmeRegisters.cc.offset: self.cc,
            NvmeRegisters.aqa.offset: self.aqa,
        }[offset]

    def read64(self, offset: int) -> int:
        self._check()
        return (1 << 64) - 1 if self.gone else {NvmeRegisters.cap.offset: self.cap}[offset]

    def write64(self, offset: int, value: int) -> None:
        self._check()
        if offset == NvmeRegisters.asq.offset:
            self.asq = value
        else:
            assert offset == NvmeRegisters.acq.offset
            self.acq = value

    def write32(self, offset: int, value: int) -> None:
        self._check()
        if self.gone:
            return
        if offset >= regs.DOORBELLS:
            self._bell((offset - regs.DOORBELLS) // 4, value)
        elif offset == NvmeRegisters.aqa.offset:
            self.aqa = value
        else:
            assert offset == NvmeRegisters.cc.offset
            self._configure(value)

    def _check(self) -> None:
        if self.zapped:
            raise ZappedError("taken away")

    def _configure(self, value: int) -> None:
        was, self.cc = self.cc, value
        if value & 1 and not was & 1 and not self.never_ready:
            self.fatal = False
            self.sqs = {0: Queue(self.asq, (self.aqa & 0xFFF) + 1)}
            self.cqs = {0: Queue(self.acq, (self.aqa >> 16) + 1, vector=0)}
            self.csts = 1
        elif was & 1 and not value & 1 and not self.never_stops:
            self.power_on_values()
        if value >> 14 & 0b11 == 1 and not self.never_shuts_down:
            self.csts = self.csts & ~0b1100 | 0b1000

    def power_on_values(self) -> None:
        """What a reset of any kind leaves."""
        self.cc = self.csts = 0
        self.fatal = False
        self.sqs, self.cqs, self.held = {}, {}, []
        self.features, self.gathered = {}, {}

    # -- queues

    def _bell(self, index: int, value: int) -> None:
        qid, is_completion = index // 2, index % 2
        self.bells.append((index, value))
        if is_completion:
            assert qid in self.cqs, "doorbell of a completion queue that does not exist"
            return
        queue = self.sqs[qid]
        assert value < queue.entries
        while queue.position != value:
            entry = SubmissionEntry.unpack(self.iommu.load(queue.base + queue.position * 64, 64))
            queue.position = (queue.position + 1) % queue.entries
            self.log.append((qid, entry))
            if self.hold(qid, entry):
                self.held.append((qid, entry))
            else:
                self.serve(qid, entry)

    def release(self, shuffle: random.Random | None = None) -> None:
        """Serve what was held, in any order."""
        held, self.held = self.held, []
        if shuffle is not None:
            shuffle.shuffle(held)
        for qid, entry in held:
            self.serve(qid, entry)

    def serve(self, qid: int, entry: SubmissionEntry) -> None:
        """Execute one command and complete it."""
        status = self.status(qid, entry)
        result = 0
        if status == 0:
            result, status = self._admin(entry) if qid == 0 else self._io(entry)
        self.complete(qid, entry.command_id, status=status, result=result)

    def complete(self, qid: int, command_id: int, *, status: int = 0, result: int = 0, sqid: int = -1) -> None:
        """Write a completion and interrupt, rightly or wrongly."""
        sq = self.sqs[qid]
        cq = self.cqs[sq.cqid]
        done = Completion(result, 0, sq.position, qid if sqid < 0 else sqid, command_id, status << 1 | cq.phase)
        self.iommu.store(cq.base + cq.position * 16, done.pack())
        cq.position += 1
        if cq.position == cq.entries:
            cq.position, cq.phase = 0, cq.phase ^ 1
        if cq.vector is not None and cq.vector in self.vectors and self._gathers_no_more(qid, cq.vector):
            self.interrupts += 1
            os.eventfd_write(self.vectors[cq.vector].fileno(), 1)

    def _gathers_no_more(self, qid: int, vector: int) -> bool:
        """Count a completion; tell whether it is time to interrupt. This controller has all the time in the world."""
        coalescing = self.features.get((FeatureId.INTERRUPT_COALESCING, 0), 0)
        excepted = self.features.get((FeatureId.INTERRUPT_VECTOR_CONFIGURATION, vector), 0) >> 16
        if qid == 0 or excepted or not coalescing >> 8:
            return True
        self.gathered[vector] = (self.gathered.get(vector, 0) + 1) % ((coalescing & 0xFF) + 1)
        return self.gathered[vector] == 0

    # -- commands

    def _admin(self, entry: SubmissionEntry) -> tuple[int, int]:
        qid, entries = entry.cdw10 & 0xFFFF, (entry.cdw10 >> 16) + 1
        if entry.opcode == AdminOpcode.IDENTIFY:
            self.iommu.store(entry.prp1, self._identify(entry))
        elif entry.opcode == AdminOpcode.SET_FEATURES and entry.cdw10 != FeatureId.NUM_QUEUES:
            if entry.cdw10 in self.fixed:
                return 0, 0x410E
            several = entry.cdw10 == FeatureId.INTERRUPT_VECTOR_CONFIGURATION
            self.features[entry.cdw10, entry.cdw11 & 0xFFFF if several else 0] = entry.cdw11
        elif entry.opcode == AdminOpcode.SET_FEATURES:
            self.granted = min((entry.cdw11 & 0xFFFF) + 1, self.max_queues)
            return (self.granted - 1) * 0x10001, 0
        elif entry.opcode == AdminOpcode.GET_FEATURES:
            ours = entry.cdw10 in (FeatureId.INTERRUPT_COALESCING, FeatureId.INTERRUPT_VECTOR_CONFIGURATION)
            return self.features.get((entry.cdw10, entry.cdw11), 0 if ours else entry.cdw10), 0
        elif entry.opcode == AdminOpcode.CREATE_CQ:
            if qid > self.max_queues:
                return 0, 0x4101
            vector = entry.cdw11 >> 16 if entry.cdw11 & 2 else None
            self.cqs[qid] = Queue(entry.prp1, entries, vector=vector)
        elif entry.opcode == AdminOpcode.CREATE_SQ:
            assert entry.cdw11 >> 16 in self.cqs
            self.sqs[qid] = Queue(entry.prp1, entries, cqid=entry.cdw11 >> 16)
        elif entry.opcode == AdminOpcode.DELETE_SQ:
            for held in [each for each in self.held if each[0] == qid]:
                self.held.remove(held)
                self.complete(qid, held[1].command_id, status=0x08)
            del self.sqs[qid]
        elif entry.opcode == AdminOpcode.DELETE_CQ:
            assert all(sq.cqid != qid for sq in self.sqs.values())
            del self.cqs[qid]
        elif entry.opcode == AdminOpcode.GET_LOG_PAGE:
            size = ((entry.cdw10 >> 16) + 1) * 4
            smart = entry.cdw10 & 0xFF == LogPageId.SMART
            self.iommu.store(entry.prp1, (b"\0\x43\x01" if smart else b"").ljust(size, b"\0"))
        elif entry.opcode == AdminOpcode.ABORT:
            return self._abort(entry.cdw10 & 0xFFFF, entry.cdw10 >> 16), 0
        else:
            return 0, 0x4001
        return 0, 0

    def _abort(self, qid: int, command_id: int) -> int:
        for held in self.held:
            if self.aborts and (held[0], held[1].command_id) == (qid, command_id):
                self.held.remove(held)
                self.complete(qid, command_id, status=0x07)
                return 0
        return 1

    def _identify(self, entry: SubmissionEntry) -> bytes:
        data = bytearray(4096)
        if entry.cdw10 == Cns.CONTROLLER:
            data[4:24], data[24:64], data[64:72] = b"MODEL1".ljust(20), b"A model".ljust(40), b"1.0".ljust(8)
            data[77], data[80:84] = self.mdts, struct.pack("<I", self.version)
            data[516:522] = struct.pack("<IH", max(self.namespaces), 0b1100)
        elif entry.cdw10 == Cns.NAMESPACE:
            data[0:8] = struct.pack("<Q", self.num_blocks)
            data[128:132] = struct.pack("<I", self.namespaces[entry.nsid] << 16)
        elif entry.cdw10 == Cns.ACTIVE_NAMESPACES:
            ids = [nsid for nsid in sorted(self.namespaces) if nsid > entry.nsid][:1024]
            data[: 4 * len(ids)] = struct.pack(f"<{len(ids)}I", *ids)
        return bytes(data)

    def _io(self, entry: SubmissionEntry) -> tuple[int, int]:
        lba, count = entry.cdw10 | entry.cdw11 << 32, (entry.cdw12 & 0xFFFF) + 1
        place = slice(lba * BLOCK, (lba + count) * BLOCK)
        if entry.opcode in (IoOpcode.READ, IoOpcode.WRITE, IoOpcode.WRITE_ZEROES):
            if lba + count > self.num_blocks:
                return 0, LBA_OUT_OF_RANGE
            if entry.opcode == IoOpcode.WRITE_ZEROES:
                self.disk[place] = bytes(count * BLOCK)
                return 0, 0
            if count * BLOCK > PAGE << self.mdts:
                return 0, 0x4002
            offset = place.start
            for iova, size in self.pieces(entry.prp1, entry.prp2, count * BLOCK):
                if entry.opcode == IoOpcode.READ:
                    self.iommu.store(iova, bytes(self.disk[offset : offset + size]))
                else:
                    self.disk[offset : offset + size] = self.iommu.load(iova, size)
                offset += size
        elif entry.opcode == IoOpcode.DATASET_MANAGEMENT:
            raw = self.iommu.load(entry.prp1, 16 * (entry.cdw10 + 1))
            for _, length, start in struct.iter_unpack("<IIQ", raw):
                self.disk[start * BLOCK : (start + length) * BLOCK] = bytes(length * BLOCK)
        elif entry.opcode != IoOpcode.FLUSH:
            return 0, 0x4001
        return 0, 0

    def pieces(self, prp1: int, prp2: int, size: int) -> Iterator[tuple[int, int]]:
        """Walk the PRPs of a transfer."""
        first = min(size, PAGE - prp1 % PAGE)
        yield prp1, first
        left = size - first
        if 0 < left <= PAGE:
            yield prp2, left
        elif left:
            at = prp2
            while left:
                entry = int.from_bytes(self.iommu.load(at, 8), "little")
                if (at + 8) % PAGE == 0 and left > PAGE:
                    at = entry
                    continue
                assert entry % PAGE == 0
                yield entry, min(left, PAGE)
                left -= min(left, PAGE)
                at += 8


class FakeMsix:
    """Hands out real vectors, which the model signals."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def enable(self, count: int) -> tuple[IrqVector, ...]:
        assert not self.model.vectors
        return tuple(self.add(number) for number in range(count))

    def add(self, number: int) -> IrqVector:
        vector = self.model.vectors[number] = IrqVector(number, f"model MSI-X {number}")
        return vector

    def remove(self, number: int) -> None:
        self.model.vectors.pop(number)._close()

    def disable(self) -> None:
        for number in tuple(self.model.vectors):
            self.remove(number)


class FakePci:
    """As much of a `PciDevice` as a driver uses."""

    name = "model"

    def __init__(self, model: Model, space: AddressSpace) -> None:
        self.model = model
        self.address_space = space
        self.config = SimpleNamespace(vendor_id=1, device_id=2, class_code=0x010802)
        self.irqs = SimpleNamespace(msix=FakeMsix(model))
        self.driver: object = None
        self.master = False
        self.dma_alloc = space.alloc
        self.resets = 0

    def bar(self, number: int) -> Model:
        assert number == 0
        return self.model

    def set_master(self, enable: bool) -> None:
        self.master = enable

    def reset(self) -> None:
        self.resets += 1
        driver = cast("SimpleNamespace", self.driver)
        if driver is not None:
            driver.reset_prepare()
        if self.model.gone:
            raise DeviceGoneError("nothing there to reset")
        self.model.power_on_values()
        if driver is not None:
            driver.reset_done()


@contextlib.contextmanager
def model_device() -> Iterator[tuple[Model, PciDevice]]:
    """Give a model and the PCI device that it is; check afterwards that nothing stays mapped."""
    iommu = Iommu()
    with mock.patch("vfio_user.iommu.address_space.open_backend", return_value=iommu):
        space = AddressSpace(IommuMode.TYPE1V2)
    with space, space.attach(PciFunction(PciAddress(0, 1, 0, 0))):
        model = Model(iommu)
        pci = FakePci(model, space)
        yield model, cast("PciDevice", pci)
        assert not pci.master, "bus mastering stays on"
        assert not model.vectors, "vectors stay enabled"
    space.detach()


__all__ = ["BLOCK", "LBA_OUT_OF_RANGE", "PAGE", "FakePci", "Iommu", "Model", "model_device"]

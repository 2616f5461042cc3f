"""How each driver carries content: turns of writing and reading back, or of sending and receiving."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING

import numpy

from tests.traffic.content import BLOCK, Content, Rows
from vfio_user.drivers.ethernet import TEST_TYPE, build_frame

if TYPE_CHECKING:
    from vfio_user import DmaBuffer
    from vfio_user.drivers.igb import Igb
    from vfio_user.drivers.nvme import NvmeController, Pieces
    from vfio_user.drivers.virtio import VirtioBlk

__all__ = ["BUFFER", "PATIENCE", "PIECE", "BlkCarrier", "Carrier", "DiskCarrier", "NvmeCarrier", "PortCarrier"]

PATIENCE = 60.0
PIECE = 256 << 10
"""Bytes of one command or request to a disk."""
_DEPTH = 16
BUFFER = _DEPTH * PIECE
"""Bytes of a disk's buffers."""
_IN_PIECE = PIECE // BLOCK


class Carrier(abc.ABC):
    """Something that moves bytes and checks all of them."""

    def __init__(self, name: str) -> None:
        self.name = name
        """For the account."""
        self.carried = 0
        """Bytes that went to the device or came from it; those that came were right."""
        self._turn = 0

    @abc.abstractmethod
    def step(self) -> None:
        """Do one turn."""

    @abc.abstractmethod
    def finish(self) -> None:
        """Check what can be checked at the end only."""


class DiskCarrier(Carrier):
    """Writes pieces of 256 KiB to random places, sixteen in flight, and reads them back in another order.

    At the end all that was ever written is read once more: nothing may have gone to a wrong place.
    """

    def __init__(self, name: str, size: int, buffers: tuple[DmaBuffer, DmaBuffer]) -> None:
        """Use a disk of ``size`` bytes by two buffers of `_DEPTH` pieces: one to write from, one to read into."""
        super().__init__(name)
        self._content = Content(len(name))
        self._chance = numpy.random.default_rng(1)
        self._out, self._in = (buffer.array("<u8", (_DEPTH, _IN_PIECE, BLOCK // 8)) for buffer in buffers)
        self._turn_of = numpy.full(size // PIECE, -1)

    @abc.abstractmethod
    def write(self, places: Rows) -> None:
        """Write the pieces of the first buffer to places, counted in pieces; all are done when it returns."""

    @abc.abstractmethod
    def read(self, places: Rows) -> None:
        """Read into the pieces of the second buffer."""

    def step(self) -> None:
        places = self._chance.choice(len(self._turn_of), _DEPTH, replace=False)
        for piece, place in zip(self._out, places, strict=True):
            self._content.fill(piece, _blocks_of(place), self._turn)
        self.write(places)
        self.carried += _DEPTH * PIECE
        self._turn_of[places] = self._turn
        self._read_back(self._chance.permutation(places))
        self._turn += 1

    def finish(self) -> None:
        written = numpy.flatnonzero(self._turn_of >= 0)
        for first in range(0, len(written), _DEPTH):
            self._read_back(written[first : first + _DEPTH])

    def _read_back(self, places: Rows) -> None:
        self.read(places)
        for piece, place in zip(self._in, places, strict=False):
            wrong = self._content.wrong(piece, _blocks_of(place), int(self._turn_of[place]))
            assert not len(wrong), f"{self.name}: {len(wrong)} blocks are wrong, the first at {wrong[0] * BLOCK:#x}"
        self.carried += len(places) * PIECE


def _blocks_of(place: int) -> Rows:
    return numpy.arange(place * _IN_PIECE, (place + 1) * _IN_PIECE)


class NvmeCarrier(DiskCarrier):
    """NVMe: an array of commands with one doorbell."""

    def __init__(
        self, ctrl: NvmeController, pieces: tuple[Pieces, Pieces], buffers: tuple[DmaBuffer, DmaBuffer]
    ) -> None:
        super().__init__("nvme", ctrl.namespaces[0].size, buffers)
        self._queue = ctrl.io_queues[0]
        self._pieces_out, self._pieces_in = pieces

    def write(self, places: Rows) -> None:
        rows = numpy.arange(len(places))
        self._pieces_out.write(rows, places * self._pieces_out.num_blocks)
        self._run(self._pieces_out, rows)

    def read(self, places: Rows) -> None:
        rows = numpy.arange(len(places))
        self._pieces_in.read(rows, places * self._pieces_in.num_blocks)
        self._run(self._pieces_in, rows)

    def _run(self, pieces: Pieces, rows: Rows) -> None:
        failed = pieces.run(rows, queue=self._queue, timeout=PATIENCE)["status"] >> 1
        assert not failed.any(), f"commands failed: {failed}"


class BlkCarrier(DiskCarrier):
    """virtio-blk: requests in flight, waited for in their order."""

    def __init__(self, disk: VirtioBlk, buffers: tuple[DmaBuffer, DmaBuffer]) -> None:
        super().__init__("virtio-blk", disk.capacity * 512, buffers)
        self._disk = disk
        self._parts = tuple([buffer[n * PIECE : (n + 1) * PIECE] for n in range(_DEPTH)] for buffer in buffers)

    def write(self, places: Rows) -> None:
        sectors = (places * (PIECE // 512)).tolist()
        requests = [self._disk.submit_write(*each) for each in zip(self._parts[0], sectors, strict=True)]
        for request in requests:
            request.wait(PATIENCE)

    def read(self, places: Rows) -> None:
        sectors = (places * (PIECE // 512)).tolist()
        requests = [self._disk.submit_read(*each) for each in zip(self._parts[1], sectors, strict=False)]
        for request in requests:
            request.wait(PATIENCE)


class PortCarrier(Carrier):
    """Two ports of a network: each sends the other a batch of long frames at a time."""

    BATCH = 64
    HEADER = 16  # two bytes more than Ethernet's, so that words lie where they should

    def __init__(self, ports: tuple[Igb, Igb]) -> None:
        super().__init__("igb")
        self._lines = [(sender, receiver) for sender, receiver in (ports, ports[::-1])]
        size = min(port.max_frame for port in ports) - self.HEADER
        self._content = Content(82576, size // 8 * 8)
        self._words = size // 8

    def step(self) -> None:
        for sender, receiver in self._lines:
            header = build_frame(receiver.mac, sender.mac, TEST_TYPE, bytes(2))
            numbers = numpy.arange(self.BATCH) + self._turn * self.BATCH
            frames = numpy.empty((self.BATCH, self.HEADER + 8 * self._words), "u1")
            frames[:, : self.HEADER] = numpy.frombuffer(header, "u1")
            words = numpy.empty((self.BATCH, self._words), "<u8")
            self._content.fill(words, numbers, self._turn)
            frames[:, self.HEADER :] = words.view("u1")
            sender.send([memoryview(frame.data) for frame in frames], timeout=PATIENCE)
            self._receive(receiver, header, frames.shape[1], numbers)
            self.carried += 2 * frames.nbytes  # out of one, and into the other
        self._turn += 1

    def _receive(self, port: Igb, header: bytes, size: int, numbers: Rows) -> None:
        came: list[bytes] = []
        while len(came) < len(numbers):
            came += [frame for frame in port.receive(timeout=PATIENCE) if frame.startswith(header)]
        assert {len(frame) for frame in came} == {size}
        words = numpy.frombuffer(b"".join(frame[self.HEADER :] for frame in came), "<u8").reshape(len(came), -1)
        wrong = self._content.wrong(words, numbers, self._turn)
        assert not len(wrong), f"{self.name}: frames {wrong} are wrong, or out of their order"

    def finish(self) -> None:
        for port, _ in self._lines:
            counted = port.statistics()
            assert (counted.missed, counted.no_buffers, counted.crc_errors, counted.dropped) == (0, 0, 0, 0)

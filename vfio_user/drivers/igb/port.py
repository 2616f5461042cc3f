"""An 82576 port, as users see it: frames in and out, link, statistics."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vfio_user.drivers.ethernet import HEADER_SIZE, Frame, LinkDownError, check_sizes
from vfio_user.drivers.igb import regs
from vfio_user.drivers.igb.adapter import IgbAdapter
from vfio_user.drivers.igb.errors import IgbDeadlineError
from vfio_user.drivers.igb.queue import IgbQueue
from vfio_user.drivers.igb.regs import ReceiveControl
from vfio_user.drivers.igb.rings import DESCRIPTOR_SIZE, RxRing, TxRing, check_entries
from vfio_user.drivers.igb.statistics import PortStatistics
from vfio_user.drivers.waiting import LOOK_EVERY, deadline_of
from vfio_user.errors import BoundsError, DeadlineError
from vfio_user.kernel.mman import round_up

if TYPE_CHECKING:
    from vfio_user.device.irq import IrqVectors
    from vfio_user.device.vector import IrqVector
    from vfio_user.pci.device import PciDevice

__all__ = ["Igb"]

_VLAN_TAG = 4
_CHECKSUM = 4
_MOST_QUEUES = 4  # with two vectors each, and one for the link, of ten
_MOST_MTU = 9216 - HEADER_SIZE - _VLAN_TAG - _CHECKSUM


class Igb(IgbAdapter):
    """Drive a port of an Intel 82576 (igb): send and receive Ethernet frames in batches.

    ::

        with vfio_user.open("0000:01:00.0") as pci, Igb(pci) as port:
            port.wait_link(timeout=10)
            port.send([frame, another])
            for frame in port.receive(timeout=1):
                ...

    Frames are whole, from destination address to the end of the payload, without checksum. Short ones are padded by
    the controller to 60 bytes.

    Lifetime:
        See `Driver`. Probing resets the function, turns bus mastering and MSI-X on, and begins to negotiate a link.
    Locking:
        Any thread may call it; each queue has a lock for sending and one for receiving.
    """

    def __init__(
        self,
        pci: PciDevice,
        *,
        queues: int = 1,
        rx_entries: int = 256,
        tx_entries: int = 256,
        mtu: int = 1500,
        promiscuous: bool = False,
        interrupts: bool = True,
        interrupt_interval: float = 0.0,
        timeout: float = 5.0,
    ) -> None:
        """Take a function; nothing is touched before `start`, or the ``with`` block.

        Args:
            pci: the function, 8086:10c9.
            queues: pairs of queues, 1 to 4; IPv4 flows are spread over them, all else comes to queue 0.
            rx_entries: receive buffers of each, a multiple of 8 up to 32768.
            tx_entries: transmit buffers of each; one less can be in flight.
            mtu: bytes of the longest payload, 46 to 9194; longer frames are neither sent nor received.
            promiscuous: receive frames for other stations too; broadcast and multicast ones come in any case.
            interrupts: MSI-X vectors, two for each pair and one for the link; without, waiting polls.
            interrupt_interval: see `set_interrupt_interval`.
            timeout: default deadline of sending, and of all that is awaited, seconds.

        Raises:
            UnsupportedError: the function is no 82576.
            BoundsError: a number is outside of what the controller takes.
        """
        super().__init__(pci, timeout=timeout)
        for what, value, least, most in (("queues", queues, 1, _MOST_QUEUES), ("mtu", mtu, 46, _MOST_MTU)):
            if not least <= value <= most:
                raise BoundsError(f"{what} is {value}: give {least} to {most}")
        check_entries("rx_entries", rx_entries)
        check_entries("tx_entries", tx_entries)
        self._num_queues = queues
        self._rx_entries = rx_entries
        self._tx_entries = tx_entries
        self._promiscuous = promiscuous
        self._interrupts = interrupts
        self._interval = regs.interval_of(interrupt_interval)
        self.max_frame = HEADER_SIZE + _VLAN_TAG + mtu
        """Bytes of the longest frame, without its checksum."""
        self._buffer_size = round_up(max(2048, self.max_frame), 1024)
        self.queues: tuple[IgbQueue, ...] = ()
        """The pairs of queues."""
        self._link_vector: IrqVector | None = None
        self._counting = threading.Lock()

    # -- frames

    def send(self, frames: Sequence[Frame], *, queue: int = 0, timeout: float | None = None) -> None:
        """Hand frames over to the controller, with one write of the tail where the ring has room for all.

        Bytes are copied. A `DmaSlice` (of a `DmaPool`, say) is sent from where it is: leave it alone until `flush`.

        Args:
            frames: 14 to `max_frame` bytes each.
            queue: number of the queue to use.
            timeout: seconds to wait for room; by default the port's.

        Raises:
            FrameSizeError: one is too short or too long; nothing was sent.
            LinkDownError: the link is down; nothing was sent.
            RingFullError: there was no room for some in time; tells how many were handed over.
            IgbNotRunningError: the port is stopped, or being reset.
        """
        self._sender(frames, queue).send(frames, self._seconds(timeout))

    async def send_async(self, frames: Sequence[Frame], *, queue: int = 0, timeout: float | None = None) -> None:
        """Let the event loop run while there is no room for all; otherwise as `send`."""
        await self._sender(frames, queue).send_async(frames, self._seconds(timeout))

    def flush(self, *, queue: int = 0, timeout: float | None = None) -> None:
        """Wait until all frames that were handed over are sent, so that their memory is free.

        Raises:
            IgbDeadlineError: some are not sent in time.
            IgbNotRunningError: a reset or removal came; those in flight are counted as aborted.
        """
        self._pair(queue).flush(self._seconds(timeout))

    async def flush_async(self, *, queue: int = 0, timeout: float | None = None) -> None:
        """Let the event loop run until all frames are sent; otherwise as `flush`."""
        await self._pair(queue).flush_async(self._seconds(timeout))

    def receive(self, limit: int = 256, *, queue: int = 0, timeout: float = 0.0) -> list[bytes]:
        """Take the frames that have come, in their order, in one scan of the ring.

        Args:
            limit: most frames.
            queue: number of the queue to look at.
            timeout: seconds to wait for the first; with 0, an empty list says that there is none.

        Raises:
            BoundsError: ``limit`` is not above 0.
            IgbDeadlineError: none came in time.
            IgbNotRunningError: the port is stopped, or a reset came.
        """
        return self._receiver(limit, queue).receive(limit, timeout)

    async def receive_async(self, limit: int = 256, *, queue: int = 0, timeout: float | None = None) -> list[bytes]:
        """Let the event loop run until frames have come; ``timeout`` is by default the port's. Raises as `receive`."""
        return await self._receiver(limit, queue).receive_async(limit, self._seconds(timeout))

    # -- link and statistics

    @property
    def link_up(self) -> bool:
        """Tell whether the link is up; reads a register."""
        with self._running():
            return self.registers.link_up()

    def wait_link(self, timeout: float = 10.0) -> None:
        """Wait until the link is up; negotiating one takes seconds.

        Raises:
            IgbDeadlineError: it is still down after ``timeout`` seconds: is there a cable, and a partner?
        """
        deadline = deadline_of(timeout)
        while not self.link_up:
            left = deadline - time.monotonic()
            if left <= 0:
                raise IgbDeadlineError(f"the link of {self.name} is down, after {timeout:g} s still")
            if self._link_vector is None:
                time.sleep(min(left, 0.01))
                continue
            with contextlib.suppress(DeadlineError):
                self._link_vector.wait(min(left, LOOK_EVERY))
            with self._running():
                self.registers.acknowledge()

    def statistics(self) -> PortStatistics:
        """Read what was counted since the port was started."""
        with self._running():
            self._count()
        return PortStatistics(
            **self._counters,
            reported_sent=sum(pair.num_sent for pair in self.queues),
            aborted=sum(pair.num_aborted for pair in self.queues),
            dropped=sum(pair.rx.num_bad for pair in self.queues),
        )

    # -- interrupts

    def set_interrupt_interval(self, seconds: float) -> None:
        """Choose how long the controller waits from one interrupt of a queue to its next (EITR); kept over resets.

        The first after a pause comes at once; a busy queue interrupts once for all that came meanwhile.

        Args:
            seconds: 0 to 0.008191, in steps of a microsecond; 0 for an interrupt each time. QEMU takes twice as long.
                Of a port without interrupts nothing comes of it.

        Raises:
            BoundsError: it is something else.
            IgbNotRunningError: the port is stopped, or being reset.
        """
        interval = regs.interval_of(seconds)
        with self._life:
            self._require_running()
            self._interval = interval
            self._set_intervals()

    def _set_intervals(self) -> None:
        if self._interrupts:
            self.registers.set_intervals(self._interval, 2 * self._num_queues)

    # -- for IgbAdapter

    def _num_vectors(self) -> int:
        return 2 * self._num_queues + 1 if self._interrupts else 0

    def _allocate(self, stack: contextlib.ExitStack, vectors: IrqVectors | None) -> None:
        self._counters = dict.fromkeys(regs.STATISTICS, 0)
        self._link_vector = None if vectors is None else vectors[-1]
        pairs = []
        for number in range(self._num_queues):
            size = self._buffer_size
            ring = round_up(self._rx_entries * DESCRIPTOR_SIZE, 4096)
            rings = ring + round_up(self._tx_entries * DESCRIPTOR_SIZE, 4096)
            # One mapping for a pair: its cost is per mapping.
            split = rings + self._rx_entries * size
            memory = stack.enter_context(self.pci.dma_alloc(split + self._tx_entries * size))
            pairs.append(
                IgbQueue(
                    number,
                    self.registers,
                    (
                        RxRing(memory[:ring], memory[rings:split], self._rx_entries, size),
                        TxRing(memory[ring:rings], memory[split:], self._tx_entries, size),
                    ),
                    (None, None) if vectors is None else (vectors[2 * number], vectors[2 * number + 1]),
                    self._require_running,
                )
            )
        self.queues = tuple(pairs)

    def _configure(self) -> None:
        registers = self.registers
        registers.spread(self._num_queues)
        for pair in self.queues:
            pair.clear()
            registers.set_receive_queue(pair.number, pair.rx, self._buffer_size)
            registers.set_transmit_queue(pair.number, pair.tx)
        receive = ReceiveControl.BROADCAST | ReceiveControl.MULTICAST_PROMISCUOUS
        if self._promiscuous:
            receive |= ReceiveControl.UNICAST_PROMISCUOUS
        if self.max_frame > 1518:
            receive |= ReceiveControl.LONG_PACKETS
        registers.clear_counters()
        registers.start(self._num_queues, receive, self.max_frame + _CHECKSUM)
        if self._interrupts:
            numbers = range(self._num_queues)
            link = 2 * self._num_queues
            registers.route_interrupts([2 * n for n in numbers], [2 * n + 1 for n in numbers], link)
            self._set_intervals()
        for pair in self.queues:
            pair.start()
        registers.start_link()

    def _quiesce(self) -> None:
        self._count()  # the reset clears the counters
        super()._quiesce()

    def _forget(self) -> None:
        for pair in self.queues:
            pair.halt()

    # -- inside

    def _seconds(self, timeout: float | None) -> float:
        return self.timeout if timeout is None else timeout

    def _sender(self, frames: Sequence[Frame], queue: int) -> IgbQueue:
        """Refuse what can't be sent; give the queue for the rest."""
        pair = self._pair(queue)
        check_sizes(self.name, frames, self.max_frame)
        if not self.link_up:
            raise LinkDownError(f"the link of {self.name} is down; wait_link() waits for it. Nothing was sent")
        return pair

    def _receiver(self, limit: int, queue: int) -> IgbQueue:
        if limit < 1:
            raise BoundsError(f"limit is {limit}: give at least 1")
        return self._pair(queue)

    def _pair(self, number: int) -> IgbQueue:
        self._require_running()
        if not 0 <= number < len(self.queues):
            raise BoundsError(f"{self.name} has no queue {number}; it has 0 to {len(self.queues) - 1}")
        return self.queues[number]

    def _count(self) -> None:
        with self._counting:
            for name, value in self.registers.clear_counters().items():
                self._counters[name] += value

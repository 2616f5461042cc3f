"""Channel programs: CCWs in both formats, chains, jumps, lists of indirect addresses; all big-endian.

Source: z/Architecture Principles of Operation (SA22-7832), chapter 15.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from vfio_user.errors import AlignmentError, ArgumentError, BoundsError

__all__ = ["Ccw", "CcwFlag", "ChannelProgram", "Command", "Orb"]

_CCW = 8
_LIMIT = {0: 1 << 24, 1: 1 << 31}
_IDA_BLOCK = {31: 2048, 64: 4096}


class Command(enum.IntEnum):
    """Commands that every device has, or most; the low bits say which way data goes."""

    WRITE = 0x01
    READ = 0x02
    NOP = 0x03
    SENSE = 0x04
    TIC = 0x08
    SENSE_ID = 0xE4
    READ_CONFIGURATION_DATA = 0xFA


class CcwFlag(enum.IntFlag):
    """Flags of a CCW."""

    CHAIN_DATA = 0x80
    """The next CCW goes on with the data of this command."""
    CHAIN_COMMAND = 0x40
    """The next CCW is the next command."""
    SUPPRESS_LENGTH = 0x20
    """A length that differs is no error (SLI)."""
    SKIP = 0x10
    """Data that is read goes nowhere."""
    INTERRUPT = 0x08
    """An intermediate interrupt when this CCW becomes current (PCI)."""
    INDIRECT = 0x04
    """The address is that of a list of addresses (IDA)."""
    SUSPEND = 0x02
    """Suspend the program before this CCW."""
    MODIFIED_INDIRECT = 0x01
    """The list has lengths too (MIDA)."""


_NONE = CcwFlag(0)


@dataclass(frozen=True, slots=True)
class Ccw:
    """One channel command word."""

    command: int
    """What to do, 8 bits."""
    address: int = 0
    """IOVA of the data, of its list of addresses, or of the next CCW."""
    count: int = 1
    """Bytes of data, 16 bits; TIC has none."""
    flags: CcwFlag = _NONE
    """See `CcwFlag`."""

    def encode(self, form: int = 1) -> bytes:
        """Give its 8 bytes.

        Args:
            form: 0 (24-bit addresses) or 1 (31-bit).

        Raises:
            ArgumentError: another format.
            BoundsError: a field does not fit.
        """
        if form not in _LIMIT:
            raise ArgumentError(f"CCWs have format 0 or 1, not {form}")
        if not 0 <= self.address < _LIMIT[form]:
            raise BoundsError(f"address {self.address:#x} is beyond the {_LIMIT[form] - 1:#x} of format-{form} CCWs")
        if not 0 <= self.command <= 0xFF or not 0 <= self.count <= 0xFFFF:
            raise BoundsError(f"command {self.command:#x} or count {self.count} does not fit a CCW")
        if form == 1:
            return struct.pack(">BBHI", self.command, self.flags, self.count, self.address)
        return struct.pack(">IBxH", self.command << 24 | self.address, self.flags, self.count)

    @classmethod
    def decode(cls, data: bytes, form: int = 1) -> Ccw:
        """Read 8 bytes.

        Raises:
            ArgumentError: another format.
            BoundsError: another number of bytes.
        """
        if len(data) != _CCW:
            raise BoundsError(f"a CCW has {_CCW} bytes, not {len(data)}")
        if form == 1:
            command, flags, count, address = struct.unpack(">BBHI", data)
        elif form == 0:
            word, flags, count = struct.unpack(">IBxH", data)
            command, address = word >> 24, word & 0xFFFFFF
        else:
            raise ArgumentError(f"CCWs have format 0 or 1, not {form}")
        return cls(command, address, count, CcwFlag(flags))


@dataclass(frozen=True, slots=True)
class _Jump:
    target: int


@dataclass(frozen=True, slots=True)
class _Indirect:
    ccw: Ccw
    addresses: tuple[int, ...]


@dataclass(slots=True)
class ChannelProgram:
    """CCWs in their order, built up by calls that can be chained; `place` gives the bytes for an address.

    ::

        program = ChannelProgram().command(Command.SENSE_ID, data.iova, 7, flags=CcwFlag.SUPPRESS_LENGTH)

    Every command but the last gets `CcwFlag.CHAIN_COMMAND` by itself.

    Lifetime:
        A value; place it as often as needed.
    Locking:
        None; build it in one thread.
    """

    form: int = 1
    """Format of its CCWs: 0 or 1."""
    idaw_bits: int = 64
    """Width of indirect addresses: 31 or 64; the ORB says it for the whole program."""
    _steps: list[Ccw | _Jump | _Indirect] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuse what no program has.

        Raises:
            ArgumentError: another format or width.
        """
        if self.form not in _LIMIT or self.idaw_bits not in _IDA_BLOCK:
            raise ArgumentError(f"format {self.form} is not 0 or 1, or width {self.idaw_bits} not 31 or 64")

    def command(
        self,
        command: int,
        address: int = 0,
        count: int = 1,
        *,
        flags: CcwFlag = _NONE,
    ) -> ChannelProgram:
        """Add a command with its data in one piece; with `CcwFlag.CHAIN_DATA` the next one continues it."""
        self._steps.append(Ccw(command, address, count, flags))
        return self

    def indirect(
        self,
        command: int,
        addresses: Sequence[int],
        count: int,
        *,
        flags: CcwFlag = _NONE,
    ) -> ChannelProgram:
        """Add a command whose data is in pieces, each a block of memory but for the first's begin and the last's end.

        Args:
            command: what to do.
            addresses: where the pieces begin: the first anywhere, the others on a block of 4096 bytes (64 bits) or 2048
                (31 bits).
            count: bytes in all.
            flags: see `CcwFlag`.

        Raises:
            AlignmentError: a piece but the first does not begin on a block.
            BoundsError: an address does not fit, or there are too few or too many for ``count``.
        """
        block, limit = _IDA_BLOCK[self.idaw_bits], 1 << self.idaw_bits
        if not addresses or any(not 0 <= each < limit for each in addresses):
            raise BoundsError(f"indirect addresses {list(addresses)} are not all within {self.idaw_bits} bits")
        if any(each % block for each in addresses[1:]):
            raise AlignmentError(f"indirect addresses but the first are multiples of {block}")
        needed = -(-(addresses[0] % block + count) // block)
        if count <= 0 or len(addresses) != needed:
            raise BoundsError(f"{count} bytes from {addresses[0]:#x} take {needed} addresses, not {len(addresses)}")
        self._steps.append(_Indirect(Ccw(command, 0, count, flags | CcwFlag.INDIRECT), tuple(addresses)))
        return self

    def jump(self, target: int) -> ChannelProgram:
        """Go on at another CCW of this program, by its number from 0 (transfer in channel)."""
        self._steps.append(_Jump(target))
        return self

    @property
    def size(self) -> int:
        """Bytes of CCWs and lists of addresses together."""
        width = self.idaw_bits // 8 + (self.idaw_bits == 31)
        return _CCW * len(self._steps) + sum(
            width * len(each.addresses) for each in self._steps if isinstance(each, _Indirect)
        )

    def place(self, address: int) -> bytes:
        """Give its bytes, for memory at an IOVA: the CCWs, then the lists of addresses.

        Args:
            address: a multiple of 8, below 2 GiB (16 MiB in format 0).

        Raises:
            ArgumentError: it is empty, ends in a jump, or jumps outside of itself or to a jump.
            AlignmentError: the address is no multiple of 8.
            BoundsError: an address does not fit the format.
        """
        if address % _CCW:
            raise AlignmentError(f"a channel program begins at a multiple of {_CCW}, not at {address:#x}")
        if not self._steps or isinstance(self._steps[-1], _Jump):
            raise ArgumentError("a channel program has a command at its end")
        words, lists = [], b""
        lists_at = address + _CCW * len(self._steps)
        layout = ">I" if self.idaw_bits == 31 else ">Q"
        for number, step in enumerate(self._steps):
            if isinstance(step, _Jump):
                words.append(Ccw(Command.TIC, self._target(address, step), 0).encode(self.form))
                continue
            ccw = step.ccw if isinstance(step, _Indirect) else step
            if isinstance(step, _Indirect):
                ccw = replace(ccw, address=lists_at + len(lists))
                lists += b"".join(struct.pack(layout, each) for each in step.addresses)
            if number + 1 < len(self._steps) and not ccw.flags & CcwFlag.CHAIN_DATA:
                ccw = replace(ccw, flags=ccw.flags | CcwFlag.CHAIN_COMMAND)
            words.append(ccw.encode(self.form))
        return b"".join(words) + lists

    def _target(self, address: int, jump: _Jump) -> int:
        steps = self._steps
        if not 0 <= jump.target < len(steps) or isinstance(steps[jump.target], _Jump):
            raise ArgumentError(f"a jump to CCW {jump.target}: it must be one of 0 to {len(steps) - 1}, and no jump")
        return address + _CCW * jump.target


@dataclass(frozen=True, slots=True)
class Orb:
    """An operation request block: what `CcwDevice.start` hands over."""

    address: int
    """IOVA of the channel program, below 2 GiB."""
    form: int = 1
    """Format of its CCWs."""
    idaw_bits: int = 64
    """Width of its indirect addresses."""
    prefetch: bool = True
    """The channel may read ahead; the program must not change itself."""
    paths: int = 0xFF
    """Mask of the channel paths that may be used."""
    parameter: int = 0
    """Comes back in the subchannel's information, 32 bits."""
    suspend: bool = False
    """CCWs may suspend the program."""

    @classmethod
    def of(cls, program: ChannelProgram, address: int) -> Orb:
        """Give the ORB of a program that was placed at an IOVA."""
        return cls(address, program.form, program.idaw_bits)

    def encode(self) -> bytes:
        """Give its first 12 bytes, which are those that a command needs.

        Raises:
            BoundsError: a field does not fit.
            AlignmentError: the address is no multiple of 8.
        """
        if self.address % _CCW:
            raise AlignmentError(f"a channel program begins at a multiple of {_CCW}, not at {self.address:#x}")
        if not 0 <= self.address < 1 << 31 or not 0 <= self.paths <= 0xFF or not 0 <= self.parameter < 1 << 32:
            raise BoundsError(f"{self}: address below 2 GiB, 8 bits of paths, 32 bits of parameter")
        word = self.suspend << 27 | self.form << 23 | self.prefetch << 22 | self.paths << 8
        if self.idaw_bits == 64:
            word |= 1 << 17
        return struct.pack(">III", self.parameter, word, self.address)

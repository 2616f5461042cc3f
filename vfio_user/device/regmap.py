"""Register maps: a driver declares its registers once, and gets accessors, decoding and a reference from that."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar, overload

from vfio_user._mmio import Cell
from vfio_user.device.region import Region
from vfio_user.device.registers import Registers
from vfio_user.device.regvalue import Access, RegisterValue, document
from vfio_user.errors import ArgumentError, UnsupportedError, VfioError

__all__ = ["BoundRegister", "Reading", "Register", "RegisterMap"]

_V = TypeVar("_V", bound=RegisterValue)


class Register(Generic[_V]):
    """One register of a `RegisterMap`: where it is, how wide, what may be done with it, and what its bits mean.

    In the class it is this description (``NvmeRegisters.cc.offset``); in a map of a device's region it is a
    `BoundRegister`, which reads and writes.

    Lifetime:
        As the class that it is declared in.
    Locking:
        None; immutable.
    """

    name: str = "?"
    """Its name in the map."""

    @overload
    def __init__(
        self: Register[RegisterValue], offset: int, width: int, access: Access = ..., *, doc: str, source: str = ...
    ) -> None: ...
    @overload
    def __init__(
        self, offset: int, width: int, access: Access = ..., kind: type[_V] = ..., *, doc: str, source: str = ...
    ) -> None: ...
    def __init__(
        self,
        offset: int,
        width: int,
        access: Access = Access.RW,
        kind: type[RegisterValue] = RegisterValue,
        *,
        doc: str,
        source: str = "",
    ) -> None:
        """Declare it.

        Args:
            offset: bytes from the map's start, a multiple of the width.
            width: in bits: 8, 16, 32 or 64.
            access: what may be done with it.
            kind: what its bits mean.
            doc: what it is for, in one line.
            source: section of the specification.

        Raises:
            ArgumentError: a width that no register has, an offset that no access could be made at, or fields beyond
                the width.
        """
        if width not in (8, 16, 32, 64):
            raise ArgumentError(f"a register of {width} bits: the widths are 8, 16, 32 and 64")
        if offset < 0 or offset % (width // 8):
            raise ArgumentError(f"a register of {width} bits can't be at offset {offset:#x}")
        beyond = [name for name, each in kind.fields.items() if each.high >= width]
        if beyond:
            raise ArgumentError(f"{kind.__name__}.{beyond[0]} is beyond the register's {width} bits")
        self.offset = offset
        """Bytes from the map's start."""
        self.width = width
        """In bits."""
        self.access = access
        """What may be done with it."""
        self.kind: type[_V] = kind  # type: ignore[assignment]  # the overloads say so
        """What its bits mean."""
        self.doc = doc
        """What it is for."""
        self.source = source
        """Section of the specification."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Register[_V]: ...
    @overload
    def __get__(self, instance: RegisterMap, owner: type) -> BoundRegister[_V]: ...
    def __get__(self, instance: RegisterMap | None, owner: type) -> Register[_V] | BoundRegister[_V]:
        # A map has its bound registers in its own dictionary, which comes before this: this is the class's way.
        return self

    def __repr__(self) -> str:
        return f"<Register {self.name} at {self.offset:#x}, {self.width} bits, {self.access.value}>"


class BoundRegister(Cell, Generic[_V]):
    """A register of a device: ``read()`` and ``write(value)`` make one access of exactly its width.

    They are the C core's, with nothing left to look up or to check, and raise as the region's accessors do.

    Lifetime:
        As the region.
    Locking:
        As the region's accessors. `update` is two accesses: keep others from the register meanwhile.
    """

    __slots__ = ("_region", "offset", "register")

    def __init__(self, register: Register[_V], region: Registers, base: int) -> None:
        """Bind a register to a region; `RegisterMap` does this."""
        self.register = register
        """What it is."""
        self.offset = base + register.offset
        """Bytes from the region's start."""
        self._region = region
        mmio = region.mmio if isinstance(region, Region) else None
        super().__init__(region if mmio is None else mmio, self.offset, register.width // 8)

    def get(self) -> _V:
        """Read it, and give an integer that knows its fields: ``regs.csts.get().ready``."""
        return self.register.kind(self.read())

    def update(self, **fields: int) -> _V:
        """Read it, change some fields, write it; give what was written.

        Raises:
            ArgumentError: no such field, or a value that does not fit it.
        """
        value = self.get().replace(**fields)
        self.write(value)
        return value

    def wait(self, timeout: float, **fields: int) -> _V:
        """Read it until its fields have these values: ``regs.csts.wait(1.0, rdy=1)``; see `Region.poll_until`.

        Raises:
            DeadlineError: they did not within ``timeout`` seconds.
            UnsupportedError: this map is not over a device's region.
        """
        if not isinstance(self._region, Region):
            raise UnsupportedError(f"{self.register.name} can only be waited for through the device's own region")
        kind = self.register.kind
        mask = sum(kind.field(name).mask for name in fields)
        width = self.register.width // 8
        return kind(self._region.poll_until(self.offset, mask, kind.compose(**fields), timeout, width=width))

    def __repr__(self) -> str:
        return repr(self.register).replace("<Register", "<BoundRegister")


class _ReadOnly(BoundRegister[_V]):
    __slots__ = ()

    def write(self, value: int, /) -> None:
        raise UnsupportedError(f"{self.register.name} is read-only; {value:#x} was not written")


class _WriteOnly(BoundRegister[_V]):
    __slots__ = ()

    def read(self) -> int:
        raise UnsupportedError(f"{self.register.name} is write-only")


_BOUND: dict[Access, type[BoundRegister[RegisterValue]]] = {Access.RO: _ReadOnly, Access.WO: _WriteOnly}


@dataclass(frozen=True, slots=True)
class Reading:
    """What one register read as."""

    register: Register[RegisterValue]
    """Which one."""
    value: RegisterValue | None
    """What it said; `None` when it was not read."""
    note: str = ""
    """Why it was not read."""

    def to_json(self) -> dict[str, object]:
        """Give it as plain data."""
        register, value = self.register, self.value
        return {
            "name": register.name,
            "offset": register.offset,
            "width": register.width,
            "access": register.access.value,
            "value": None if value is None else int(value),
            "fields": {} if value is None else {name: int(number) for name, number in value.numbers()},
            "text": "" if value is None else value.text(),
            "note": self.note,
        }


class RegisterMap:
    """The registers of a device, declared once, as attributes of a subclass.

    ::

        class EduRegisters(RegisterMap):
            "Registers of edu."

            factorial = Register(0x08, 32, doc="Number in, factorial out.")
            status = Register(0x20, 32, kind=EduStatus, doc="What the factorial unit does.")

        regs = EduRegisters(pci.bar(0))
        regs.factorial.write(10)
        regs.status.get().computing

    A driver names its maps in `Driver.register_maps`; ``vfio-user regs`` and ``vfio-user watch`` decode by them.

    Lifetime:
        As its region.
    Locking:
        As its region.
    """

    bar: ClassVar[int] = 0
    """The BAR that it is in."""
    source: ClassVar[str] = ""
    """The specification."""

    def __init__(self, region: Registers, base: int = 0) -> None:
        """Lay it over a region.

        Args:
            region: what has the registers: a `Region`, or anything with the same verbs.
            base: where in the region it begins, bytes.
        """
        self.region = region
        """What has the registers."""
        for register in self.registers():
            self.__dict__[register.name] = _BOUND.get(register.access, BoundRegister)(register, region, base)

    @classmethod
    def registers(cls) -> tuple[Register[RegisterValue], ...]:
        """Give the descriptions of all registers, ordered by offset."""
        found = {
            name: each for kind in reversed(cls.__mro__) for name, each in vars(kind).items() if type(each) is Register
        }
        return tuple(sorted(found.values(), key=lambda each: each.offset))

    def bound(self) -> Iterator[BoundRegister[RegisterValue]]:
        """Give all registers of this device, ordered by offset."""
        for register in self.registers():
            yield self.__dict__[register.name]

    def snapshot(self, *, everything: bool = False) -> tuple[Reading, ...]:
        """Read all registers whose reading changes nothing, ordered by offset.

        Args:
            everything: also those whose reading changes the device.
        """
        return tuple(_read(each, everything) for each in self.bound())

    @classmethod
    def describe(cls) -> str:
        """Give a reference of the map in Markdown: a table of the registers, and one of the fields of each."""
        return document(cls.__name__, cls.__doc__ or "", cls.source, cls.registers())

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.region!r}, {len(self.registers())} registers>"


def _read(bound: BoundRegister[RegisterValue], everything: bool) -> Reading:
    access = bound.register.access
    if not access.readable:
        return Reading(bound.register, None, "write-only")
    if not access.quiet and not everything:
        return Reading(bound.register, None, "reading it changes the device")
    try:
        return Reading(bound.register, bound.get())
    except VfioError as error:
        return Reading(bound.register, None, str(error))

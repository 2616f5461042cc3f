"""Values of registers: integers that know their fields."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar, overload

from vfio_user.errors import ArgumentError, BoundsError

if TYPE_CHECKING:
    from typing import Self

    from vfio_user.device.regmap import Register

__all__ = ["Access", "Field", "RegisterValue", "document"]

_T = TypeVar("_T")


class Access(enum.Enum):
    """What may be done with a register."""

    RO = "ro"
    """Read only."""
    RW = "rw"
    """Read and write."""
    WO = "wo"
    """Write only."""
    W1C = "w1c"
    """Read; bits that are written as 1 are cleared."""
    RC = "rc"
    """Read, which changes the device (clears the register, takes from a queue); may be written too."""

    @property
    def readable(self) -> bool:
        """Tell whether it can be read."""
        return self is not Access.WO

    @property
    def writable(self) -> bool:
        """Tell whether it can be written."""
        return self is not Access.RO

    @property
    def quiet(self) -> bool:
        """Tell whether reading changes nothing."""
        return self not in (Access.WO, Access.RC)


class Field(Generic[_T]):
    """Some bits of a register; as an attribute of a value, what they say.

    Lifetime:
        As the class that it is declared in.
    Locking:
        None; immutable.
    """

    name: str = "?"
    """Its name."""

    @overload
    def __init__(self: Field[int], low: int, high: int | None = ..., *, doc: str) -> None: ...
    @overload
    def __init__(self, low: int, high: int | None = ..., *, kind: Callable[[int], _T], doc: str) -> None: ...
    def __init__(self, low: int, high: int | None = None, *, kind: Callable[[int], object] = int, doc: str) -> None:
        """Declare it.

        Args:
            low: its lowest bit.
            high: its highest bit; by default it has one.
            kind: what to make of the number: `bool`, an enumeration, or any function.
            doc: what it says, in one line.

        Raises:
            ArgumentError: bits that no register has.
        """
        self.low = low
        """Its lowest bit."""
        self.high = low if high is None else high
        """Its highest bit."""
        self.doc = doc
        """What it says."""
        self.kind: Callable[[int], _T] = kind  # type: ignore[assignment]  # the overloads say so
        """What is made of the number."""
        if not 0 <= low <= self.high < 64:
            raise ArgumentError(f"bits {self.high}:{low} are no field of a register")
        self.limit = (1 << (self.high - low + 1)) - 1
        """Its largest number."""
        self.mask = self.limit << low
        """Its bits in the register."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Field[_T]: ...
    @overload
    def __get__(self, instance: RegisterValue, owner: type) -> _T: ...
    def __get__(self, instance: RegisterValue | None, owner: type) -> Field[_T] | _T:
        return self if instance is None else self.kind(self.number(instance))

    def number(self, value: int) -> int:
        """Take it out of a register's value."""
        return value >> self.low & self.limit

    def put(self, number: int) -> int:
        """Give the bits of the register that hold a number.

        Raises:
            BoundsError: it does not fit.
        """
        if not 0 <= number <= self.limit:
            raise BoundsError(f"{number} does not fit the field {self.name}: 0 to {self.limit}")
        return number << self.low

    def text(self, value: int) -> str:
        """Say in words what a register's value has there: an enumeration's name, or the number."""
        number = self.number(value)
        try:
            meaning = self.kind(number)
        except ValueError:  # a number newer than the enumeration
            return str(number)
        if isinstance(meaning, enum.Enum) and meaning.name:
            return meaning.name.lower()
        return str(meaning if isinstance(meaning, str) else number)

    def __repr__(self) -> str:
        return f"<Field {self.name} {self.high}:{self.low}>"


class RegisterValue(int):
    """An integer that was read from a register, with its fields as attributes.

    ::

        class ControllerStatus(RegisterValue):
            rdy = Field(0, kind=bool, doc="Commands are processed.")
            shst = Field(2, 3, kind=ShutdownStatus, doc="How far a shutdown is.")

        ControllerStatus(5).shst            # ShutdownStatus.UNDER_WAY
        ControllerStatus.compose(rdy=1)     # an integer to write

    Lifetime:
        A value.
    Locking:
        None; immutable.
    """

    __slots__ = ()
    fields: ClassVar[dict[str, Field[object]]] = {}
    """The fields by name, from the lowest bit up."""

    def __init_subclass__(cls) -> None:
        """Collect the fields.

        Raises:
            ArgumentError: two overlap.
        """
        found = dict(cls.fields) | {name: each for name, each in vars(cls).items() if isinstance(each, Field)}
        cls.fields = dict(sorted(found.items(), key=lambda item: item[1].low))
        taken = 0
        for name, each in cls.fields.items():
            if taken & each.mask:
                raise ArgumentError(f"{cls.__name__}.{name} overlaps the field below it")
            taken |= each.mask

    @classmethod
    def of_flags(cls, flags: type[enum.IntFlag]) -> type[Self]:
        """Make a class whose fields are the members of an enumeration: for drivers that work with such flags."""
        fields: dict[str, object] = {"__doc__": flags.__doc__, "__slots__": ()}
        for name, member in flags.__members__.items():
            low = (member & -member).bit_length() - 1
            fields[name.lower()] = Field(low, member.bit_length() - 1, doc=name.lower().replace("_", " ") + ".")
        return type(flags.__name__, (cls,), fields)

    @classmethod
    def field(cls, name: str) -> Field[object]:
        """Give a field by its name.

        Raises:
            ArgumentError: there is none; the message lists those that there are.
        """
        try:
            return cls.fields[name]
        except KeyError:
            raise ArgumentError(
                f"{cls.__name__} has no field {name}; it has {', '.join(cls.fields) or 'none'}"
            ) from None

    @classmethod
    def compose(cls, **numbers: int) -> Self:
        """Make a value of some fields; the others are 0.

        Raises:
            ArgumentError: no such field, or a number that does not fit it.
        """
        return cls(sum(cls.field(name).put(number) for name, number in numbers.items()))

    def replace(self, **numbers: int) -> Self:
        """Make a value with some fields changed. Raises as `compose`."""
        value = int(self)
        for name, number in numbers.items():
            field = self.field(name)
            value = value & ~field.mask | field.put(number)
        return type(self)(value)

    def numbers(self) -> Iterator[tuple[str, int]]:
        """Give name and number of each field."""
        return ((name, field.number(self)) for name, field in self.fields.items())

    def text(self) -> str:
        """Say in words what the fields have: ``"rdy=1 shst=under_way"``."""
        return " ".join(f"{name}={field.text(self)}" for name, field in self.fields.items())

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {int(self):#x}{': ' * bool(self.fields)}{self.text()}>"


def document(name: str, doc: str, source: str, registers: Sequence[Register[RegisterValue]]) -> str:
    """Write a reference of registers in Markdown."""
    lines = [f"### {name}", "", doc.strip().partition("\n")[0]]
    lines += ["", f"Source: {source}."] if source else []
    lines += ["", "| offset | name | bits | access | what it is |", "|---|---|---|---|---|"]
    for each in registers:
        what = f"{each.doc} ({each.source})" if each.source else each.doc
        lines.append(f"| `{each.offset:#06x}` | `{each.name}` | {each.width} | {each.access.value} | {what} |")
    for each in registers:
        if each.kind.fields:
            lines += ["", f"**{each.name}**", "", "| bits | field | what it says |", "|---|---|---|"]
            for field in reversed(each.kind.fields.values()):
                bits = str(field.low) if field.low == field.high else f"{field.high}:{field.low}"
                lines.append(f"| {bits} | `{field.name}` | {field.doc} |")
    return "\n".join(lines) + "\n"

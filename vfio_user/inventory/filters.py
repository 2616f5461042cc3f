"""Choose some of the functions: by address, ids, class, driver or group."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from vfio_user.addresses import PciAddress
from vfio_user.errors import ArgumentError
from vfio_user.inventory.facts import FunctionFacts

__all__ = ["Filter"]

_IDS = re.compile(r"(?P<vendor>[0-9a-f]{1,4})?:(?P<device>[0-9a-f]{1,4})?")
_CLASS = re.compile(r"[0-9a-f]{2}|[0-9a-f]{4}|[0-9a-f]{6}")
_ABSENT = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """What to choose; a field that is not given chooses everything.

    Raises:
        ArgumentError: a field can't be.
    """

    addresses: tuple[str, ...] = ()
    """Addresses: functions (``01:00.0``), or all functions of a slot (``01:00``)."""
    ids: str | None = None
    """``vendor:device`` in hexadecimal; one of them may be left out: ``8086:`` and ``:1533``."""
    kind: str | None = None
    """Class: two, four or six hexadecimal digits, or a word of its name: ``0108``, ``ethernet``."""
    driver: str | None = None
    """Kernel driver; ``none`` for those without."""
    group: int | None = None
    """IOMMU group."""
    vfio: bool = False
    """Only those that are bound to a VFIO driver."""

    def __post_init__(self) -> None:
        for address in self.addresses:
            _address(address)
        if self.ids is not None and not _IDS.fullmatch(self.ids.lower()):
            raise ArgumentError(f"{self.ids!r} are no ids; write vendor:device, such as 8086:1533, 8086: or :1533")

    def apply(self, functions: Iterable[FunctionFacts]) -> tuple[FunctionFacts, ...]:
        """Give those of the functions that are meant, in their order."""
        return tuple(each for each in functions if self.matches(each))

    def matches(self, function: FunctionFacts) -> bool:
        """Tell whether a function is meant."""
        return (
            (
                not self.addresses
                or any(_address(each) in (function.address, _slot(function)) for each in self.addresses)
            )
            and self._ids_match(function)
            and self._kind_matches(function)
            and (self.driver is None or self.driver == (function.driver or _ABSENT))
            and self.group in (None, function.group)
            and (not self.vfio or (function.driver is not None and "vfio" in function.driver))
        )

    def _ids_match(self, function: FunctionFacts) -> bool:
        found = _IDS.fullmatch((self.ids or ":").lower())
        assert found is not None, "checked when it was made"
        wanted = ((found["vendor"], function.vendor), (found["device"], function.device))
        return all(text is None or int(text, 16) == number for text, number in wanted)

    def _kind_matches(self, function: FunctionFacts) -> bool:
        if self.kind is None:
            return True
        word = self.kind.lower().removeprefix("0x")
        if _CLASS.fullmatch(word):
            return f"{function.class_code:06x}".startswith(word)
        return word in (function.class_name or "").lower()


def _address(text: str) -> str:
    """Spell an address as sysfs does; a slot without function too."""
    if "." not in text:
        return str(PciAddress.parse(f"{text}.0")).removesuffix(".0")
    return str(PciAddress.parse(text))


def _slot(function: FunctionFacts) -> str:
    return function.address.rpartition(".")[0]

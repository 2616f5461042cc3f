"""Embedding, as the kernel does it: a bus-neutral device inside of a bus's device, and the way back."""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar, overload

__all__ = ["Embeddable", "Embedded", "container_of"]


class Embeddable(Protocol):
    """What can be embedded: an object with room for the way back."""

    _outer: tuple[object, object] | None


OuterT = TypeVar("OuterT")
InnerT = TypeVar("InnerT", bound=Embeddable)


class Embedded(Generic[OuterT, InnerT]):
    """Declare a member that is embedded in its class, like a struct within a struct.

    ::

        class PciDevice:
            vdev = Embedded["PciDevice", VfioDevice]()

    ``device.vdev`` is the inner object, set once; ``PciDevice.vdev`` names the member, for `container_of`.

    Lifetime:
        The two objects have one lifetime: each refers to the other.
    Locking:
        Set once, when the outer object is made; read from any thread.
    """

    def __set_name__(self, owner: type[OuterT], name: str) -> None:
        self._owner = owner
        self._name = name
        self._slot = f"_embedded_{name}"

    @overload
    def __get__(self, outer: None, owner: type) -> Embedded[OuterT, InnerT]: ...
    @overload
    def __get__(self, outer: OuterT, owner: type) -> InnerT: ...
    def __get__(self, outer: OuterT | None, owner: type) -> Embedded[OuterT, InnerT] | InnerT:
        if outer is None:
            return self
        try:
            inner: InnerT = outer.__dict__[self._slot]
        except KeyError:
            raise AttributeError(f"{self._describe()} is not made yet") from None
        return inner

    def __set__(self, outer: OuterT, inner: InnerT) -> None:
        if self._slot in outer.__dict__:
            raise TypeError(f"{self._describe()} is embedded once, for life")
        if inner._outer is not None:
            raise TypeError(f"{inner!r} is embedded in {inner._outer[1]!r} already")
        outer.__dict__[self._slot] = inner
        inner._outer = (self, outer)

    def _describe(self) -> str:
        return f"{self._owner.__name__}.{self._name}"


def container_of(inner: InnerT, member: Embedded[OuterT, InnerT]) -> OuterT:
    """Give the object that ``inner`` is embedded in as ``member``: ``container_of(vdev, PciDevice.vdev)``.

    Raises:
        TypeError: it is embedded elsewhere, or not at all.
    """
    outer = inner._outer
    if outer is None or outer[0] is not member:
        where = outer[0]._describe() if outer is not None and isinstance(outer[0], Embedded) else "nothing"
        raise TypeError(f"{inner!r} is embedded as {where}, not as {member._describe()}")
    found: OuterT = outer[1]  # type: ignore[assignment]  # the member's identity proves the type
    return found

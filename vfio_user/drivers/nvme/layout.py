"""Reading the structures of the specification: a frozen dataclass says where each of its fields lies.

A field is annotated with its place, ``vendor_id: Annotated[int, At(0, 2)]``, and `parse` does the rest:
integers are little-endian and unsigned, text is ASCII without its padding, bytes are taken as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from vfio_user.errors import MalformedReplyError

__all__ = ["IDENTIFY_SIZE", "At", "parse", "whole_page"]

IDENTIFY_SIZE = 4096
"""Bytes of every structure that Identify returns."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class At:
    """The place of a field in its structure."""

    offset: int
    """Bytes from the start of the structure."""
    size: int
    """Bytes of the field."""


def parse(cls: type[T], data: bytes | bytearray | memoryview, **more: object) -> T:
    """Build a ``cls`` from the bytes that the controller returned.

    Args:
        cls: a dataclass whose fields are annotated with `At`.
        data: the structure; may be longer than what is read of it.
        more: values of fields that have no `At`, computed by the caller.

    Raises:
        MalformedReplyError: ``data`` is too short.
    """
    raw = bytes(data)
    plan, needed = _plan(cls)
    if len(raw) < needed:
        raise MalformedReplyError(f"{cls.__name__}: {len(raw)} bytes, its fields reach to byte {needed}")
    values = {name: _read(kind, raw[at.offset : at.offset + at.size]) for name, kind, at in plan}
    return cls(**values, **more)


# Resolving annotations takes longer than reading the structure, so it is done once for each class.
_plans: dict[type, tuple[list[tuple[str, type, At]], int]] = {}


def _plan(cls: type[Any]) -> tuple[list[tuple[str, type, At]], int]:
    if cls in _plans:
        return _plans[cls]
    hints = get_type_hints(cls, include_extras=True)
    plan = []
    for field in fields(cls):
        if get_origin(hints[field.name]) is Annotated:
            kind, at = get_args(hints[field.name])
            plan.append((field.name, kind, at))
    _plans[cls] = plan, max(at.offset + at.size for _, _, at in plan)
    return _plans[cls]


def _read(kind: type, raw: bytes) -> int | str | bytes:
    if kind is str:
        return raw.split(b"\0", 1)[0].decode("ascii", errors="replace").strip()
    return raw if kind is bytes else int.from_bytes(raw, "little")


def whole_page(what: str, data: bytes | bytearray | memoryview) -> bytes:
    """Copy the 4096 bytes that Identify returns.

    Raises:
        MalformedReplyError: there are fewer; ``what`` names the structure.
    """
    if len(data) < IDENTIFY_SIZE:
        raise MalformedReplyError(f"{what}: {len(data)} bytes, Identify returns {IDENTIFY_SIZE}")
    return bytes(data[:IDENTIFY_SIZE])

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_user.errors import MalformedReplyError
from vfio_user.kernel.ioctl import capabilities

HEADER = struct.Struct("=HHI")


def chain(*links: tuple[int, int, int, int], size: int = 256) -> bytes:
    """Build a reply from ``(offset, id, version, next)``."""
    raw = bytearray(size)
    for offset, identity, version, following in links:
        HEADER.pack_into(raw, offset, identity, version, following)
    return bytes(raw)


def test_no_capabilities() -> None:
    assert list(capabilities(b"", 0)) == []


def test_chain_in_any_order() -> None:
    raw = chain((64, 3, 1, 24), (24, 7, 2, 248), (248, 1, 9, 0))
    assert list(capabilities(raw, 64)) == [(3, 1, 64), (7, 2, 24), (1, 9, 248)]


@pytest.mark.parametrize("offset", [249, 255, 256, 257, 0xFFFFFFFF, -8])
def test_outside_of_the_reply(offset: int) -> None:
    with pytest.raises(MalformedReplyError, match=f"capability at {offset} lies outside of the reply of 256 bytes"):
        list(capabilities(bytes(256), offset))


def test_reply_shorter_than_a_header() -> None:
    with pytest.raises(MalformedReplyError):
        list(capabilities(bytes(4), 1))


@pytest.mark.parametrize("following", [16, 24, 40])
def test_circle(following: int) -> None:
    raw = chain((16, 1, 1, 24), (24, 2, 1, 40), (40, 3, 1, following))
    with pytest.raises(MalformedReplyError, match=f"comes back to offset {following}"):
        list(capabilities(raw, 16))


def test_what_comes_before_the_damage_is_given() -> None:
    walk = capabilities(chain((16, 1, 1, 9999)), 16)
    assert next(walk) == (1, 1, 16)
    with pytest.raises(MalformedReplyError):
        next(walk)


@given(st.binary(max_size=512), st.integers(0, 0xFFFFFFFF) | st.integers(0, 600))
def test_hostile_bytes_end_in_a_named_error_or_not_at_all(raw: bytes, first: int) -> None:
    found = []
    try:
        for capability in capabilities(raw, first):
            found.append(capability)
    except MalformedReplyError:
        pass
    offsets = [offset for _, _, offset in found]
    assert len(set(offsets)) == len(offsets) <= len(raw)
    for identity, version, offset in found:
        assert raw[offset : offset + 4] == struct.pack("=HH", identity, version)
        assert offset + HEADER.size <= len(raw)


@given(st.permutations(range(1, 20)), st.data())
def test_every_well_formed_chain_is_walked_whole(slots: list[int], data: st.DataObject) -> None:
    slots = slots[: data.draw(st.integers(1, len(slots)))]
    offsets = [slot * 8 for slot in slots]
    links = [
        (offset, slot, slot + 1, following)
        for offset, slot, following in zip(offsets, slots, [*offsets[1:], 0], strict=True)
    ]
    expected = [(identity, version, offset) for offset, identity, version, _ in links]
    assert list(capabilities(chain(*links), offsets[0])) == expected

"""Who may have what."""

from __future__ import annotations

import pytest

from vfio_user.addresses import PciAddress
from vfio_user.errors import ArgumentError
from vfio_user.handover import Grant, Policy
from vfio_user.kernel.passing import Peer

ADDRESS = PciAddress.parse("0000:03:00.0")


def peer(uid: int, *gids: int) -> Peer:
    return Peer(1, uid, frozenset(gids))


def test_users_and_groups() -> None:
    policy = Policy.parse(["03:00.0=1000,@50", "0000:03:00.0=root", "host=04:00.0=1001"])
    assert policy.allows(peer(1000), ADDRESS)
    assert policy.allows(peer(2000, 50), ADDRESS)
    assert policy.allows(peer(0), ADDRESS)
    assert policy.allows(peer(1001), PciAddress.parse("04:00.0"))
    assert not policy.allows(peer(1001), ADDRESS)
    assert not policy.allows(peer(50), ADDRESS), "the number of a group is not that of a user"
    assert not policy.allows(peer(2000, 1000), ADDRESS), "nor the other way round"


def test_root_gets_what_it_is_given() -> None:
    assert not Policy((Grant(ADDRESS, frozenset({1000})),)).allows(peer(0, 0), ADDRESS)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("03:00.0", "does not say who"),
        ("03:00.0=", "does not say who"),
        ("03:00.0= , ", "does not say who"),
        ("=alice", "is not"),
        ("eth0=root", "this is a name"),
        ("03:00.0=no-such-user", "there is no user 'no-such-user'"),
        ("03:00.0=@no-such-group", "there is no group 'no-such-group'"),
        ("03:00.0=@", "there is no group ''"),
    ],
)
def test_what_is_no_grant(text: str, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        Policy.parse([text])


def test_nothing_allowed_is_a_mistake() -> None:
    with pytest.raises(ArgumentError, match="--allow"):
        Policy.parse([])

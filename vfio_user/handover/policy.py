"""Who may have which device: what the broker is told by whoever starts it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vfio_user.addresses import PciAddress
from vfio_user.binding.nodes import find_owner
from vfio_user.errors import ArgumentError
from vfio_user.kernel.passing import Peer

__all__ = ["Grant", "Policy"]


@dataclass(frozen=True, slots=True)
class Grant:
    """One device, and who may have it."""

    address: PciAddress
    """Which device."""
    uids: frozenset[int] = frozenset()
    """Users, by number."""
    gids: frozenset[int] = frozenset()
    """Groups, by number: a member may have it, whoever it is."""

    @classmethod
    def parse(cls, text: str) -> Grant:
        """Read ``ADDRESS=WHO,WHO``, where a WHO is a user or, after an ``@``, a group, by name or number.

        Raises:
            ArgumentError: it is not that, or there is no such user or group.
        """
        address, equals, names = text.rpartition("=")
        words = [word.strip() for word in names.split(",") if word.strip()]
        if not equals or not words:
            raise ArgumentError(f"{text!r} does not say who may have what: 0000:03:00.0=alice,@dma")
        wanted = PciAddress.parse(address)
        uids: set[int] = set()
        gids: set[int] = set()
        for word in words:
            is_group = word.startswith("@")
            owner = find_owner(None, word[1:]) if is_group else find_owner(word, None)
            assert owner is not None, "one of them was given"
            if owner.gid is not None:
                gids.add(owner.gid)
            if owner.uid is not None:
                uids.add(owner.uid)
        return cls(wanted, frozenset(uids), frozenset(gids))

    def covers(self, peer: Peer) -> bool:
        """Tell whether it is for a peer."""
        return peer.uid in self.uids or bool(self.gids & peer.gids)


@dataclass(frozen=True, slots=True)
class Policy:
    """All grants; what none of them gives, nobody gets, root neither."""

    grants: tuple[Grant, ...]
    """Who may have what; several may be about one device."""

    @classmethod
    def parse(cls, texts: Iterable[str]) -> Policy:
        """Read one grant from each text; see `Grant.parse`.

        Raises:
            ArgumentError: as that, or there is none.
        """
        grants = tuple(Grant.parse(text) for text in texts)
        if not grants:
            raise ArgumentError("nobody is allowed anything: --allow 0000:03:00.0=alice")
        return cls(grants)

    def allows(self, peer: Peer, address: PciAddress) -> bool:
        """Tell whether a peer may have a device."""
        return any(each.address == address and each.covers(peer) for each in self.grants)

"""VF tokens: what the owner of a physical function shares with the users of its virtual functions."""

from __future__ import annotations

import uuid

from vfio_user.errors import ArgumentError

__all__ = ["vf_token"]


def vf_token(text: str | uuid.UUID) -> uuid.UUID:
    """Read a token.

    Raises:
        ArgumentError: it is not a UUID.
    """
    try:
        return text if isinstance(text, uuid.UUID) else uuid.UUID(text)
    except (ValueError, AttributeError, TypeError):
        raise ArgumentError(f"VF token {text!r} is not a UUID") from None

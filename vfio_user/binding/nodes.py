"""VFIO nodes of a bound device: wait for them, hand them over, take them back."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vfio_user.binding import files
from vfio_user.binding.state import NodeState, expected_nodes, node_state
from vfio_user.errors import ArgumentError, DeadlineError, VfioOSError
from vfio_user.kernel import sysfs

__all__ = ["Owner", "find_owner", "give_back", "hand_over", "is_node", "set_owner", "wait_for_nodes"]

_LOOK = 0.01


@dataclass(frozen=True, slots=True)
class Owner:
    """Whom nodes are handed to."""

    uid: int | None
    """User; `None` leaves it as it is."""
    gid: int | None
    """Group; `None` leaves it as it is."""

    @property
    def mode(self) -> int:
        """Permission bits: the group may open the node only when there is one."""
        return 0o600 if self.gid is None else 0o660


def find_owner(user: str | int | None, group: str | int | None) -> Owner | None:
    """Look up user and group, by name or number; `None` when neither is given.

    Raises:
        ArgumentError: there is no such user or group.
    """
    if user is None and group is None:
        return None
    return Owner(_user(user) if user is not None else None, _group(group) if group is not None else None)


def wait_for_nodes(function: sysfs.PciFunction, deadline: float) -> tuple[Path, ...]:
    """Wait until every VFIO node that the kernel has for a function is in ``/dev``, and udev is done with it.

    Args:
        function: which one; bound to a VFIO driver.
        deadline: on the clock of `time.monotonic`.

    Raises:
        DeadlineError: a node did not come; says which, and why that may be.
    """
    while True:
        wanted = expected_nodes(function)
        missing = [(path, number) for path, number in wanted if not is_node(path, number)]
        # udev sets owner and mode when it sees a node; what is handed over earlier, it would take back.
        if wanted and not missing and not (files.RUN / "udev/queue").exists():
            return tuple(path for path, _ in wanted)
        if time.monotonic() >= deadline:
            break
        time.sleep(_LOOK)
    if not wanted:
        raise DeadlineError(
            f"{function.address} is bound to {function.driver}, but the kernel made no VFIO device of it (dmesg tells)"
        )
    if not missing:
        raise DeadlineError(f"udev is still busy with {', '.join(str(path) for path, _ in wanted)}: udevadm settle")
    path, number = missing[0]
    raise DeadlineError(
        f"{path} ({number}) does not appear: nobody makes nodes here (a container, or /dev is not devtmpfs). "
        f"Pass it in, or: mknod {path} c {number.replace(':', ' ')}"
    )


def hand_over(paths: Iterable[Path], owner: Owner) -> tuple[NodeState, ...]:
    """Say what nodes will be when they are handed over; `set_owner` makes it so."""
    after = []
    for path in paths:
        before = node_state(path) or NodeState(str(path), 0, 0, 0)
        uid = owner.uid if owner.uid is not None else before.uid
        gid = owner.gid if owner.gid is not None else before.gid
        after.append(NodeState(str(path), uid, gid, owner.mode))
    return tuple(after)


def give_back(before: Iterable[NodeState], ours: Iterable[NodeState]) -> None:
    """Put owner and mode of nodes back that are still there, and still as we left them.

    Args:
        before: nodes as they were.
        ours: the same nodes as they were handed over.

    Raises:
        VfioOSError: the system refused.
    """
    earlier = {node.path: node for node in before}
    for node in ours:
        now, then = node_state(Path(node.path)), earlier.get(node.path)
        if now is None or then is None:
            continue
        # A process that was killed half-way has changed the owner and not the mode.
        if (now.uid, now.gid) == (node.uid, node.gid) and now.mode in (node.mode, then.mode):
            set_owner(then)


def set_owner(node: NodeState) -> None:
    """Set owner and mode of a node.

    Raises:
        VfioOSError: the system refused.
    """
    try:
        os.chown(node.path, node.uid, node.gid)
        os.chmod(node.path, node.mode)
    except OSError as error:
        raise VfioOSError(error.errno or 0, f"hand over {node.path}", "Run as root") from error


def is_node(path: Path, number: str) -> bool:
    """Tell whether a path is the device node of that ``major:minor``; a stale one is not."""
    with suppress(OSError):
        device = os.stat(path).st_rdev
        return f"{os.major(device)}:{os.minor(device)}" == number
    return False


def _user(user: str | int) -> int:
    import pwd

    # A number needs no entry: containers have users that the host does not know.
    number = _number(user)
    if number is not None:
        return number
    try:
        return pwd.getpwnam(str(user)).pw_uid
    except (KeyError, ValueError):
        raise ArgumentError(f"there is no user {user!r} here: getent passwd lists them") from None


def _group(group: str | int) -> int:
    import grp

    number = _number(group)
    if number is not None:
        return number
    try:
        return grp.getgrnam(str(group)).gr_gid
    except (KeyError, ValueError):
        raise ArgumentError(f"there is no group {group!r} here: getent group lists them") from None


def _number(text: str | int) -> int | None:
    # The highest number means "leave it" to chown().
    plain = str(text)
    if not (plain.isascii() and plain.isdecimal() and len(plain) <= 10):
        return None
    return int(plain) if int(plain) < (1 << 32) - 1 else None

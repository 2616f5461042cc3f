"""``vfio-user broker``: open devices for users who have no privilege."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from pathlib import Path

from vfio_user.binding.nodes import find_owner
from vfio_user.errors import ArgumentError
from vfio_user.handover import SOCKET, Broker, Policy, inherited, listen

__all__ = ["add"]

_DESCRIPTION = """\
Open PCI devices that are bound to vfio-pci for processes that may not do so
themselves. Such a process calls vfio_user.borrow(ADDRESS), and gets the open
files through a Unix socket; from then on it drives the device by itself, without
any privilege. Who it is, the kernel says.

It has the device as long as it keeps the connection. When it closes it, ends, or
is killed, its memory is taken from the device, and the device can be lent again.
When the broker ends, drivers keep what they have.

A device without an IOMMU is never lent. Where devices are opened through their
group, a user must be allowed all devices of the group that are bound to vfio-pci.
"""
_EXAMPLES = """\
examples:
  vfio-user broker --allow 0000:03:00.0=alice
  vfio-user broker --allow 03:00.0=alice,@dma --allow 04:00.0=@dma --socket-group dma --mode 0660

With systemd: examples/systemd has a socket and a service. A socket that systemd passes is used instead of --socket.
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this command's arguments."""
    parser = subparsers.add_parser(
        "broker",
        help="open devices for users without privilege",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="ADDRESS=WHO",
        help="who may have which device: users and @groups, by name or number, separated by commas",
    )
    parser.add_argument("--socket", type=Path, default=SOCKET, metavar="PATH", help="default: %(default)s")
    parser.add_argument(
        "--mode",
        default="0666",
        metavar="OCTAL",
        help="who may connect, which by itself gives nothing: %(default)s",
    )
    parser.add_argument("--socket-group", metavar="GROUP", help="group of the socket")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    policy = Policy.parse(arguments.allow)
    owner = find_owner(None, arguments.socket_group)
    listener = inherited() or listen(
        arguments.socket, mode=_mode(arguments.mode), gid=owner.gid if owner is not None else None
    )
    with Broker(policy, listener) as broker:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: broker.stop())
        logging.getLogger("vfio_user").info("lending %d devices", len({each.address for each in policy.grants}))
        print(listener.getsockname(), flush=True)
        broker.serve()
    print("ended", file=sys.stderr)
    return 0


def _mode(text: str) -> int:
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise ArgumentError(f"mode {text!r} is not one of a file: 0660")
    return mode

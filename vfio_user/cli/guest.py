"""``vfio-user guest``: run a command in a QEMU guest with emulated devices."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from vfio_user.testing import topology
from vfio_user.testing.errors import GuestSpecError
from vfio_user.testing.guest import ACCELS, Guest, run
from vfio_user.testing.machines import MACHINES

__all__ = ["add"]

_DESCRIPTION = """\
Boot a QEMU guest that has emulated PCI devices, bound to vfio-pci, behind an emulated IOMMU; run COMMAND in
it as root; show its output; exit with its exit code.

The guest sees this machine's files at the same paths. What it writes is gone afterwards, but for the folder
$VFIO_USER_OUTPUT, which --output names here. $VFIO_USER_DEVICES names a JSON file with the devices'
addresses.

A guest of another architecture (--arch) is always emulated. It has Python, pytest and this package, and of
this machine's files those of the working directory. Its kernel is built the first time: some minutes.
"""
_EXAMPLES = """\
examples:
  vfio-user guest --device edu -- ls -l /dev/vfio
  vfio-user guest --kernel 6.1 --device nvme,size=64M --output results -- python -m pytest tests
  vfio-user guest --device edu+edu --iommu virtio -- sh -c 'cat $VFIO_USER_DEVICES'
  vfio-user guest --arch arm64 --device pl031 -- python3 -m pytest tests

A guest that crashes, panics or hangs is an error (exit code 2), shown with the end of its console.
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this command's arguments."""
    parser = subparsers.add_parser(
        "guest",
        help="run a command in a QEMU guest with emulated devices",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = Guest()
    named = "; ".join(f"{name} = {' and '.join(slots)}" for name, slots in topology.TOPOLOGIES.items())
    parser.add_argument(
        "--arch", choices=list(MACHINES), default=default.arch, help="architecture (default: %(default)s)"
    )
    parser.add_argument(
        "--kernel",
        default=default.kernel,
        help=f"{_by_machine({arch: machine.kernels for arch, machine in MACHINES.items()})}; or an image's path. "
        "The first is the default; stock is this release's",
    )
    parser.add_argument(
        "--device",
        dest="devices",
        action="append",
        default=[],
        metavar="KIND[,PROPERTY=VALUE…][+…]",
        help="one PCIe slot; + joins the functions of one slot; may be given several times. "
        f"Kinds: {', '.join(sorted(topology.KINDS))}, and QEMU's own device models. On other buses: "
        f"{_by_machine({arch: machine.seats for arch, machine in MACHINES.items() if machine.seats})}",
    )
    parser.add_argument(
        "--topology",
        action="append",
        default=[],
        metavar="NAME",
        help=f"slots by name, before --device: {named}",
    )
    parser.add_argument(
        "--iommu",
        default=default.iommu,
        help=f"{_by_machine({arch: machine.iommus for arch, machine in MACHINES.items()})}. "
        "The first is the default; with amd, devices sit on the root bus",
    )
    parser.add_argument("--memory", default=default.memory, metavar="SIZE", help="default: %(default)s")
    parser.add_argument("--cpus", type=int, default=default.cpus, metavar="N", help="default: %(default)s")
    parser.add_argument("--accel", choices=ACCELS, default=default.accel, help="default: %(default)s")
    parser.add_argument(
        "--timeout", type=float, default=300.0, metavar="SECONDS", help="for all of it (default: %(default)g)"
    )
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="folder that the guest may write to")
    parser.add_argument("--append", default=default.append, metavar="ARGUMENTS", help="kernel arguments to add")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="variable for the command")
    parser.add_argument("--no-bind", action="store_true", help="leave the devices to the kernel's own drivers")
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="program and arguments, after --")
    parser.set_defaults(run=_run)


def _by_machine(names: Mapping[str, Iterable[str]]) -> str:
    return "; ".join(f"{arch}: {', '.join(each)}" for arch, each in names.items())


def _slots(arguments: argparse.Namespace) -> tuple[str, ...]:
    slots: list[str] = []
    for name in arguments.topology:
        if name not in topology.TOPOLOGIES:
            raise GuestSpecError(f"there is no topology {name!r}; take one of {', '.join(topology.TOPOLOGIES)}")
        slots += topology.TOPOLOGIES[name]
    return (*slots, *arguments.devices)


def _environment(pairs: list[str]) -> dict[str, str]:
    for pair in pairs:
        if not pair.partition("=")[1] or not pair.partition("=")[0].isidentifier():
            raise GuestSpecError(f"--env {pair!r} is not NAME=VALUE")
    return dict(pair.split("=", 1) for pair in pairs)


def _run(arguments: argparse.Namespace) -> int:
    # A runner that is told to stop (timeout, CI) cleans up, as it does after an interrupt from the keyboard.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    guest = Guest(
        arch=arguments.arch,
        kernel=arguments.kernel,
        devices=_slots(arguments),
        iommu=arguments.iommu,
        memory=arguments.memory,
        cpus=arguments.cpus,
        accel=arguments.accel,
        append=arguments.append,
        bind=not arguments.no_bind,
    )
    result = run(
        guest,
        arguments.command,
        timeout=arguments.timeout,
        output=arguments.output,
        environment=_environment(arguments.env),
        stdout=sys.stdout.buffer,
        stderr=sys.stderr.buffer,
    )
    return result.returncode

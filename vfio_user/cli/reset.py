"""``vfio-user reset``: reset functions, slots and buses, and say what that does."""

from __future__ import annotations

import argparse
import json

from vfio_user.cli.progress import working
from vfio_user.kernel import sysfs
from vfio_user.pci import PciDevice, PciDeviceSet, ResetPlan, ResetReport
from vfio_user.session import Devices, open_all

__all__ = ["add"]

_DESCRIPTION = """\
Reset PCI devices that are bound to vfio-pci: the whole slot or bus of each (hot
reset), or with --function the function alone. First comes the plan: what is
reset together, what is not ours, what blocks it, and what to do about that.
"""
_EXAMPLES = """\
examples:
  vfio-user reset 0000:01:00.0 --dry-run      what a reset of its slot would affect
  vfio-user reset 01:00.0 01:00.1             reset the slot that both are in
  vfio-user reset 01:00.0 --siblings          the same, finding the others by itself
  vfio-user reset 01:00.0 --function --json   reset one function; times of all phases as JSON

Exit code 1 says that a dry run found the reset impossible. Opening a device lets the kernel reset it too, when it
can: nobody else may be using it, and nobody can, as a device is opened by one process at a time.
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this command's arguments."""
    parser = subparsers.add_parser(
        "reset",
        help="reset functions, slots and buses",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("addresses", nargs="+", metavar="ADDRESS", help="PCI address: 0000:03:00.0, or 03:00.0")
    parser.add_argument("--function", action="store_true", help="each function alone, not its slot or bus")
    parser.add_argument("--siblings", action="store_true", help="open what is reset together too, if it can be")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
    parser.add_argument("--json", action="store_true", help="print JSON: plans and reports")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    with _open(arguments.addresses, arguments.siblings and not arguments.function) as devices:
        if arguments.function:
            plans: list[ResetPlan] = []
            possible = all(sysfs.PciFunction(each.address).reset_methods for each in devices)
            if not arguments.json:
                for each in devices:
                    print(_methods(each))
        else:
            plans = [each.plan() for each in _sets(devices)]
            possible = all(plan.possible for plan in plans)
            if not arguments.json:
                for plan in plans:
                    print(plan)
        reports: list[ResetReport] = []
        if not arguments.dry_run:
            with working("resetting"):
                reports = _reset(devices, arguments.function)
    if arguments.json:
        print(json.dumps({"plans": _json(plans), "reports": _json(reports)}, indent=2))
    else:
        for report in reports:
            print(report)
    return 0 if possible else 1


def _open(addresses: list[str], siblings: bool) -> Devices:
    """Open devices, with ``siblings`` also those that are reset with them and bound to a VFIO driver."""
    names = list(dict.fromkeys(str(sysfs.pci_function(address).address) for address in addresses))
    devices = open_all(names)
    if not siblings:
        return devices
    try:
        plans = [each.plan() for each in _sets(devices)]
    except BaseException:
        devices.close()
        raise
    affected = (each for plan in plans for each in plan.affected if not each.blocker and not each.opened)
    more = [str(each.address) for each in affected]
    if not more:
        return devices
    devices.close()
    return open_all([*names, *more])


def _sets(devices: Devices) -> list[PciDeviceSet]:
    return list(dict.fromkeys(each.device_set for each in devices))


def _reset(devices: Devices, alone: bool) -> list[ResetReport]:
    if alone:
        return [each.reset() for each in devices]
    return [each.hot_reset() for each in _sets(devices)]


def _methods(device: PciDevice) -> str:
    methods = sysfs.PciFunction(device.address).reset_methods
    return f"reset of {device.name} alone: {'by ' + methods[0] if methods else 'not possible'}"


def _json(items: list[ResetPlan] | list[ResetReport]) -> list[dict[str, object]]:
    return [each.to_json() for each in items]

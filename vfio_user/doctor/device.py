"""What decides whether one device can be driven from user space."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from vfio_user import findings
from vfio_user.binding import openers, records, uses
from vfio_user.binding.state import expected_nodes
from vfio_user.doctor.machine import node_finding
from vfio_user.errors import VfioError
from vfio_user.findings import Finding, Severity
from vfio_user.kernel import sysfs, topology
from vfio_user.kernel.sysfs import PciFunction

__all__ = ["device_findings"]


def device_findings(function: PciFunction, journal: Path | str | None = None) -> Iterator[Finding]:
    """Look at a device, its driver, its group, its nodes and its resets."""
    name = str(function.address)
    if function.is_bridge:
        yield _bridge(name)
        return
    yield from _answers(function)
    yield from _driver(function)
    yield from _group(function)
    if function.vfio_device is not None:
        yield from _nodes(function)
    yield from _resets(function)
    with suppress(VfioError):
        for record in records(journal=journal):
            if record.address == function.address:
                yield Finding(
                    "recorded",
                    Severity.NOTE if record.complete else Severity.WARNING,
                    f"{name} was given to {record.driver or 'no driver'} by vfio-user; before, it had "
                    f"{record.before.driver or 'none'}",
                    "" if record.complete else "That was interrupted half-way.",
                    "Put it back",
                    f"vfio-user restore {name}",
                    device=name,
                )


def _bridge(name: str) -> Finding:
    return Finding(
        "bridge",
        Severity.ERROR,
        f"{name} is a bridge",
        "vfio-pci takes none, and other devices are reached through it. In a group it does no harm.",
        device=name,
    )


def _answers(function: PciFunction) -> Iterator[Finding]:
    try:
        answer = (function.path / "config").read_bytes()[:4]
    except OSError:
        return
    if answer == b"\xff\xff\xff\xff":
        name = str(function.address)
        yield Finding(
            "no-answer",
            Severity.ERROR,
            f"{name} does not answer: its configuration space reads all-ones",
            "It has fallen off the bus, or is powered down (D3cold).",
            "Remove it and look for it again",
            f"echo 1 > {function.path}/remove; echo 1 > /sys/bus/pci/rescan",
            device=name,
        )


def _driver(function: PciFunction) -> Iterator[Finding]:
    name, driver = str(function.address), function.driver
    if function.vfio_device is not None or (driver is not None and "vfio" in driver):
        yield Finding("bound", Severity.OK, f"{name} is bound to {driver}", device=name)
    else:
        yield findings.not_bound(name, driver)
        for use in uses(function):
            yield Finding(
                "in-use",
                Severity.WARNING,
                f"{name} is in use: {use.what}",
                "vfio-user bind refuses it for that.",
                "End that first, or insist",
                f"vfio-user bind {name} --force-in-use {use.kind.value}",
                device=name,
            )
    owner = topology.physical_function(function)
    if owner is not None and owner.vfio_device is not None:
        yield findings.token_needed(name)


def _group(function: PciFunction) -> Iterator[Finding]:
    name, number = str(function.address), function.iommu_group
    if number is None:
        if sysfs.groups():  # else it is the machine that has none
            yield findings.no_group(name)
        return
    if function.noiommu:
        yield findings.noiommu(name)
    group = sysfs.group(number)
    culprits = [(str(each.address), each.driver or "") for each in group.culprits if each.address != function.address]
    if culprits:
        yield findings.not_viable(number, culprits, name)
    else:
        others = len(group.members) - 1
        beside = f", with {others} other function{'s' * (others > 1)}" if others else ", alone"
        yield Finding("group", Severity.OK, f"{name} is in group {number}{beside}", device=name)
    if "direct" in {line.split()[-1] for line in _reserved(number)}:
        yield Finding(
            "firmware-owns",
            Severity.ERROR,
            f"the firmware uses memory of {name} by itself (RMRR), and the kernel gives such devices to nobody",
            "",
            "Look in the firmware for the feature behind it (legacy USB, management, RAID), and turn it off",
            device=name,
        )


def _nodes(function: PciFunction) -> Iterator[Finding]:
    name = str(function.address)
    paths = [path for path, _ in expected_nodes(function)]
    wrong = [each for each in map(node_finding, paths) if each is not None]
    if len(wrong) < len(paths):
        good = next(path for path in paths if node_finding(path) is None)
        yield Finding("nodes", Severity.OK, f"{name} can be opened through {good}", device=name)
    elif wrong and wrong[0].key == "node-not-ours":
        yield Finding(
            wrong[0].key,
            wrong[0].severity,
            wrong[0].what,
            wrong[0].why,
            f"{wrong[0].remedy} ({wrong[0].command})",
            f"vfio-user bind {name} --user $USER",
            device=name,
        )
    else:
        yield from wrong
    number = function.iommu_group
    if number is not None:
        for pid, who in openers(function):
            yield findings.open_elsewhere(name, number, f"process {pid} ({who})")


def _resets(function: PciFunction) -> Iterator[Finding]:
    name = str(function.address)
    if function.reset_methods:
        methods = ", ".join(function.reset_methods)
        yield Finding("reset", Severity.OK, f"{name} can be reset alone ({methods})", device=name)
    else:
        yield Finding(
            "no-reset",
            Severity.NOTE,
            f"{name} can't be reset alone",
            "What a driver leaves behind stays in the device, unless its whole slot or bus is reset.",
            device=name,
        )
    for other in topology.reset_domain(function):
        if other.address == function.address or other.vfio_device is not None:
            continue
        driver = other.driver or "no driver"
        bridge = "It is harmless for the group, but a" if other.is_bridge else "A"
        yield Finding(
            "reset-blocked",
            Severity.NOTE,
            f"a hot reset of {name} is blocked by {other.address} ({driver})",
            f"{bridge} hot reset takes all that hangs on the same bridge, and all must belong to VFIO drivers.",
            "" if other.is_bridge else "Bind it too, if you need hot resets",
            "" if other.is_bridge else f"vfio-user bind {other.address}",
            device=name,
        )


def _reserved(number: int) -> list[str]:
    try:
        content = (sysfs.SYSFS / f"kernel/iommu_groups/{number}/reserved_regions").read_text()
    except OSError:
        return []
    return [line for line in content.splitlines() if line.strip()]

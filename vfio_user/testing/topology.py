"""Emulated devices: from a user's words to QEMU's arguments.

A *device* is written ``KIND[,property=value…]``: ``edu``, ``nvme,size=64M``. A *slot* is one or more devices
joined by ``+``, which become the functions of one PCIe slot: ``edu+edu``. Each slot gets a PCIe root port of
its own, so that it can be bound to vfio-pci, hot-reset and unplugged. Properties other than those in `KINDS`
go to QEMU's ``-device`` as they are, and so does a kind that is not in the table.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from vfio_user.testing.errors import GuestSpecError
from vfio_user.testing.machines import MACHINES, Machine, Seat

__all__ = ["KINDS", "TOPOLOGIES", "Device", "Placed", "Plan", "parse_size", "parse_slot", "plan"]

#: Slots by name, for ``--topology``.
TOPOLOGIES: dict[str, tuple[str, ...]] = {
    "T1": ("edu",),
    "T2": ("nvme",),
    "T3": ("edu+edu",),
    "T4": ("igb+igb",),
    "T5": ("virtio-net,aer=on",),
    "T6": ("ivshmem", "edu"),
    "T7": ("nvme,vfs=4",),
}

_LAST_SLOT = 0x1E  # of pcie.0; 0x1f is the machine's LPC bridge
_SIZE = re.compile(r"(\d+)([KMGT]?)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Device:
    """One emulated device, as the user wrote it."""

    kind: str
    """Name in `KINDS`, or that of a device model of QEMU."""
    properties: tuple[tuple[str, str], ...] = ()
    """Properties in the order in which they were given."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A device with its name and place in the guest."""

    name: str
    """Kind and number: ``edu0``; also its id in QEMU's monitor."""
    kind: str
    """Kind as the user wrote it."""
    port: str
    """Address of its root port in the guest (bus numbers behind it are the guest's choice), or ``-``."""
    function: str
    """Device and function behind the port, ``00.1``; the whole address when there is no port."""
    bus: str = "pci"
    """Bus in the guest's ``/sys/bus``."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All devices of a guest."""

    arguments: tuple[str, ...]
    """QEMU's arguments."""
    placed: tuple[Placed, ...]
    """Where each device is."""
    files: tuple[tuple[str, int], ...]
    """Backing files to create beforehand: path and size in bytes."""


@dataclass(slots=True)
class _Build:
    """One device while it becomes arguments: kinds take out what is theirs and add what goes around."""

    name: str
    options: dict[str, str]
    scratch: Path
    model: str = ""
    before: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    files: list[tuple[str, int]] = field(default_factory=list)

    def take(self, key: str, default: str) -> str:
        return self.options.pop(key, default)

    def drive(self, node: str, default_size: str) -> None:
        """Add a raw disk: a sparse file, or nothing at all (``null=on``: reads zeros, for measuring)."""
        size = parse_size(self.take("size", default_size))
        if size % 512:
            raise GuestSpecError(f"{self.name}: size must be a multiple of 512 bytes, not {size}")
        if self.take("null", "off") == "on":
            self.before += ["-blockdev", f"null-co,node-name={node},size={size},read-zeroes=on"]
            return
        path = self.scratch / f"{node}.raw"
        self.files.append((str(path), size))
        escaped = str(path).replace(",", ",,")
        self.before += [
            "-blockdev",
            f"raw,node-name={node},cache.no-flush=on,discard=unmap,file.driver=file,file.filename={escaped}",
        ]


def _nvme(build: _Build) -> None:
    build.model = "nvme"
    build.options.setdefault("serial", f"VU-{build.name}")
    node = f"{build.name}-disk"
    build.drive(node, "256M")
    vfs = build.take("vfs", "0")
    if vfs == "0":
        build.options["drive"] = node
        return
    # SR-IOV needs a subsystem, a namespace of its own, and queues and vectors set aside for the VFs.
    build.before += ["-device", f"nvme-subsys,id={build.name}-subsys,nqn={build.name}"]
    build.after += ["-device", f"nvme-ns,drive={node},bus={build.name}"]
    build.options |= {"subsys": f"{build.name}-subsys", "sriov_max_vfs": vfs}
    for key, value in (
        ("sriov_vq_flexible", str(2 * int(vfs))),
        ("sriov_vi_flexible", vfs),
        ("max_ioqpairs", str(2 * int(vfs) + 10)),
        ("msix_qsize", str(int(vfs) + 12)),
    ):
        build.options.setdefault(key, value)


def _ivshmem(build: _Build) -> None:
    size = parse_size(build.take("size", "1M"))
    build.model = "ivshmem-plain"
    build.options["memdev"] = f"{build.name}-memory"
    build.before += ["-object", f"memory-backend-ram,id={build.name}-memory,size={size},share=on"]


def _network(model: str, **defaults: str) -> Callable[[_Build], None]:
    def build_network(build: _Build) -> None:
        build.model = model
        build.before += ["-netdev", f"hubport,id={build.name}-net,hubid=0"]
        build.options = {"netdev": f"{build.name}-net"} | defaults | build.options

    return build_network


def _virtio_blk(model: str, **defaults: str) -> Callable[[_Build], None]:
    def build_disk(build: _Build) -> None:
        build.model = model
        build.drive(f"{build.name}-disk", "64M")
        build.options = {"drive": f"{build.name}-disk", "serial": f"VU-{build.name}"} | defaults | build.options

    return build_disk


def _simple(model: str, **defaults: str) -> Callable[[_Build], None]:
    def build_simple(build: _Build) -> None:
        build.model = model
        build.options = defaults | build.options

    return build_simple


_MODERN = {"disable-legacy": "on", "iommu_platform": "on"}

#: What each kind adds to the plain ``-device``.
KINDS: dict[str, Callable[[_Build], None]] = {
    "e1000e": _network("e1000e"),
    "edu": _simple("edu"),
    "igb": _network("igb"),
    "ivshmem": _ivshmem,
    "nvme": _nvme,
    "virtio-blk": _virtio_blk("virtio-blk-pci", **_MODERN),
    "virtio-blk-ccw": _virtio_blk("virtio-blk-ccw"),
    "virtio-net": _network("virtio-net-pci", **_MODERN),
    "virtio-rng": _simple("virtio-rng-pci", **_MODERN),
    "virtio-rng-mmio": _simple("virtio-rng-device"),
}


def parse_size(text: str) -> int:
    """Return a size in bytes: ``64M``, ``1G``, ``4096``."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise GuestSpecError(f"{text!r} is not a size; write a number with K, M, G or T behind it, such as 64M")
    return int(match[1]) << (10 * " KMGT".index(match[2].upper() or " "))


def _parse_device(text: str) -> Device:
    """Return one device of ``KIND[,property=value…]``."""
    kind, *rest = text.strip().split(",")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", kind):
        raise GuestSpecError(f"{text!r} is not a device; write KIND[,property=value…], such as nvme,size=64M")
    properties = []
    for part in rest:
        key, sign, value = part.partition("=")
        if not key or not sign:
            raise GuestSpecError(f"{part!r} in {text!r} is not a property; write property=value")
        properties.append((key.strip(), value))
    return Device(kind, tuple(properties))


def parse_slot(text: str) -> tuple[Device, ...]:
    """Return the functions of one slot: devices joined by ``+``; eight at most."""
    functions = tuple(_parse_device(part) for part in text.split("+"))
    if len(functions) > 8:
        raise GuestSpecError(f"{text!r} has {len(functions)} functions; a slot has room for 8")
    return functions


def plan(slots: Iterable[str], scratch: Path, *, ports: bool = True, machine: Machine = MACHINES["x86_64"]) -> Plan:
    """Place devices: behind root ports, or where else the machine has seats for them.

    Args:
        slots: what `parse_slot` takes, one for each slot, in the order of their addresses.
        scratch: directory for the backing files of disks.
        ports: give slots that do not say otherwise (``port=yes``, ``port=no``) a root port; those without one sit on
            the root bus, where they can't be hot-reset.
        machine: what has the seats.

    Raises:
        GuestSpecError: a slot can't be read, or there are more than the machine has room for.
    """
    texts = tuple(slots)
    room = _LAST_SLOT - machine.first_slot + 1
    if len(texts) > room:
        raise GuestSpecError(f"a guest has room for {room} slots, not {len(texts)}")
    numbers: Counter[str] = Counter()
    parts = [_slot(index, text, numbers, scratch, ports, machine) for index, text in enumerate(texts)]
    return Plan(
        arguments=tuple(argument for part in parts for argument in part.arguments),
        placed=tuple(item for part in parts for item in part.placed),
        files=tuple(item for part in parts for item in part.files),
    )


def _slot(index: int, text: str, numbers: Counter[str], scratch: Path, ports: bool, machine: Machine) -> Plan:
    """Place the functions of one slot; `numbers` counts the devices of each kind so far."""
    functions = parse_slot(text)
    seat = machine.seats.get(functions[0].kind)
    if seat or machine.zpci:
        if len(functions) > 1:
            raise GuestSpecError(f"{text!r}: {machine.arch} has no slot with several functions for this")
        return _seated(functions[0], index, seat or _zpci(index), numbers, scratch)
    behind_port = _wants_port(functions, text, ports)
    slot = machine.first_slot + index
    arguments = _root_port(index, slot) if behind_port else []
    placed, files = [], []
    for function, device in enumerate(functions):
        name = f"{device.kind}{numbers[device.kind]}"
        numbers[device.kind] += 1
        build = _Build(name, {key: value for key, value in device.properties if key != "port"}, scratch)
        KINDS.get(device.kind, _simple(device.kind))(build)
        if behind_port:
            place = {"bus": f"port{index}", "addr": f"0.{function}"}
            placed.append(Placed(name, device.kind, f"0000:00:{slot:02x}.0", f"00.{function}"))
        else:
            place = {"bus": "pcie.0", "addr": f"{slot:#x}.{function}"}
            placed.append(Placed(name, device.kind, "-", f"0000:00:{slot:02x}.{function}"))
        arguments += [*build.before, "-device", _device(build, place, function, len(functions)), *build.after]
        files += build.files
    return Plan(tuple(arguments), tuple(placed), tuple(files))


def _seated(device: Device, index: int, seat: Seat, numbers: Counter[str], scratch: Path) -> Plan:
    """Place a device that is alone in its place."""
    number = numbers[device.kind]
    name = f"{device.kind}{number}"
    numbers[device.kind] += 1
    placed = (Placed(name, device.kind, "-", seat.at(seat.address, number), seat.bus),)
    if not seat.option and seat.bus != "pci":
        if device.properties or number:
            raise GuestSpecError(f"the machine has one {device.kind}, which takes no properties")
        return Plan((), placed, ())
    build = _Build(name, dict(device.properties), scratch)
    KINDS.get(device.kind, _simple(device.kind))(build)
    place = dict([seat.at(seat.option, number).split("=", 1)]) if seat.option else {}
    arguments = [*build.before, "-device", _device(build, place, 0, 1), *build.after]
    if seat.bus == "pci":
        # A function of s390x has a domain to itself, which this gives a number.
        arguments = ["-device", f"zpci,uid={index + 1},fid={index + 1},target={name}", *arguments]
    return Plan(tuple(arguments), placed, tuple(build.files))


def _zpci(index: int) -> Seat:
    return Seat("pci", f"{index + 1:04x}:00:00.0")


def _root_port(index: int, slot: int) -> list[str]:
    # The default speed of 16 GT/s makes a hot reset of a PCIe endpoint fail after a second: the kernel waits
    # for a "link active" that this port never reports at 8 GT/s and up.
    place = f"id=port{index},bus=pcie.0,addr={slot:#x},chassis={index + 1},slot={index + 1}"
    return ["-device", f"pcie-root-port,{place},x-speed=5"]


def _wants_port(functions: tuple[Device, ...], text: str, default: bool) -> bool:
    answers = {value for device in functions for key, value in device.properties if key == "port"}
    if not answers <= {"yes", "no"}:
        raise GuestSpecError(f"{text!r}: port must be yes or no")
    if len(answers) > 1:
        raise GuestSpecError(f"{text!r}: the functions of one slot share its root port; say port once")
    return answers == {"yes"} or (default and not answers)


def _device(build: _Build, place: dict[str, str], function: int, functions: int) -> str:
    """Return the value of ``-device``."""
    options = {"id": build.name} | place
    if functions > 1 and function == 0:
        options["multifunction"] = "on"
    if functions > 1 and build.model == "igb" and function + 1 < functions:
        # igb is an ARI device: the kernel finds its neighbour by this number only.
        options["x-pcie-ari-nextfn-1"] = "on"
    return ",".join([build.model, *(f"{key}={value}" for key, value in (options | build.options).items())])

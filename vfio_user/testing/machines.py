"""The machines that guests can be: all that architectures differ in, as data.

A guest of this machine's own architecture has this machine's files. One of another architecture has a root file system
of its own (`vfio_user.testing.roots`), a kernel that a cross compiler built, and is always emulated.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field

from vfio_user.testing.errors import GuestSpecError

__all__ = ["MACHINES", "Iommu", "Machine", "Seat", "named"]

#: Without interrupt remapping the kernel refuses devices (EPERM) unless told that this is known.
_UNSAFE = "vfio_iommu_type1.allow_unsafe_interrupts=1 iommufd.allow_unsafe_interrupts=1"
#: The virt machine's virtio transports: address of the first, and bytes to the next.
_MMIO, _MMIO_STEP = 0xA000000, 0x200
_NONE = "vfio.enable_unsafe_noiommu_mode=1"


@dataclass(frozen=True, slots=True)
class Iommu:
    """One choice of ``--iommu``."""

    device: str = ""
    """What QEMU adds; empty for none."""
    kernel: str = ""
    """What the kernel has to be told."""
    machine: str = ""
    """What QEMU's ``-machine`` has to be told."""
    ports: bool = True
    """Whether DMA works behind root ports."""
    behind: Mapping[str, int] | None = None
    """Nodes of the device tree that it takes in, though QEMU's tree does not say so, and a stream id for each."""


@dataclass(frozen=True, slots=True)
class Seat:
    """Where devices of one kind sit that are not on the PCI bus; ``{n}`` in the texts is the place of the n-th."""

    bus: str
    """Bus in the guest's ``/sys/bus``."""
    address: str
    """Name there."""
    option: str = ""
    """What QEMU's ``-device`` has to be told; empty for a device that the machine always has."""
    first: int = 0
    """Place of the first."""
    step: int = 0
    """From one place to the next."""

    def at(self, text: str, number: int) -> str:
        """Fill the place of the device with this number, from 0, into a text."""
        return text.format(n=self.first + number * self.step, i=number)


@dataclass(frozen=True, slots=True)
class Machine:
    """One architecture, as QEMU, the kernel and the distribution have it."""

    arch: str
    """What ``uname -m`` says."""
    debian: str
    """The distribution's name of it."""
    packages: str
    """Packages that guests of it need here."""
    qemu: str
    """QEMU's program."""
    model: str
    """QEMU's ``-machine``."""
    kvm: str
    """What ``-machine`` has to be told with KVM."""
    cpu: str
    """QEMU's ``-cpu``, emulated."""
    options: tuple[str, ...]
    """More of QEMU's arguments; ``{console}`` is the path of the console's file."""
    kernel: str
    """Kernel arguments."""
    share: str
    """The device that shares a folder by 9p; ``{number}`` is unique among them."""
    iommus: Mapping[str, Iommu]
    """Choices of ``--iommu``; the first is the default."""
    kernels: tuple[str, ...]
    """Kernels that it has; the first is the default."""
    linux: str
    """``ARCH=`` of the kernel's build."""
    image: str
    """Path of the image that the kernel's build makes."""
    config: str
    """File in ``kernel/`` with the feature kernel's options."""
    cross: str
    """Prefix of the cross compiler's programs."""
    seats: Mapping[str, Seat] = field(default_factory=dict)
    """Kinds of devices on other buses than PCI."""
    first_slot: int = 0x04
    """Slot of ``pcie.0`` for the first device of a plan; below it are the IOMMU and the shares."""
    zpci: bool = False
    """Whether a PCI function needs a ``zpci`` device, which gives it a domain of its own."""

    @property
    def foreign(self) -> bool:
        """Whether programs of this machine can't run in it."""
        return platform.machine() != self.arch

    @property
    def apt(self) -> str:
        """Architecture to ask the distribution for; empty where it is this machine's own."""
        return self.debian if self.foreign else ""

    @property
    def target(self) -> str:
        """What the kernel's build is asked for: the image without its path."""
        return self.image.rpartition("/")[2]


_X86_64 = Machine(
    arch="x86_64",
    debian="amd64",
    packages="qemu-system-x86",
    qemu="qemu-system-x86_64",
    model="q35",
    kvm="kernel-irqchip=split",
    cpu="max",
    options=("-serial", "file:{console}"),
    # On a busy machine the timer comes late; amd-iommu's never does.
    kernel="console=ttyS0 mitigations=off nokaslr no_timer_check",
    share="virtio-9p-pci,bus=pcie.0,addr={number:#x}",
    iommus={
        "intel": Iommu("intel-iommu,intremap=on,caching-mode=on", "intel_iommu=on", machine="kernel-irqchip=split"),
        # With pt=on it lets DMA through untranslated; behind a root port DMA reads zeros, without an error.
        "amd": Iommu("amd-iommu,pt=off", _UNSAFE, ports=False),
        "virtio": Iommu("virtio-iommu-pci,bus=pcie.0,addr=0x1", _UNSAFE),
        "none": Iommu(kernel=_NONE),
    },
    kernels=("stock", "6.1", "6.12", "feature"),
    linux="x86",
    image="arch/x86/boot/bzImage",
    config="feature.config",
    cross="",
)
_ARM64 = Machine(
    arch="aarch64",
    debian="arm64",
    packages="qemu-system-arm gcc-aarch64-linux-gnu libc6-dev-arm64-cross device-tree-compiler",
    qemu="qemu-system-aarch64",
    model="virt,gic-version=3",
    kvm="",
    cpu="cortex-a57",
    options=("-serial", "file:{console}", "-global", "virtio-mmio.force-legacy=false"),
    # vfio-platform refuses a device that it can't reset, and it has a reset function for none of QEMU's.
    kernel="console=ttyAMA0 nokaslr vfio_platform.reset_required=0",
    share="virtio-9p-pci,bus=pcie.0,addr={number:#x}",
    first_slot=0x07,
    iommus={
        # QEMU's SMMU translates for PCI only. The tree says that it does for these too, so that they have groups:
        # their DMA still goes to physical addresses, and the kernel can't tell that their interrupts are safe.
        "smmuv3": Iommu(
            machine="iommu=smmuv3",
            kernel=_UNSAFE,
            behind={
                "/pl031@9010000": 0x501,
                "/flash@0": 0x502,
                "/fw-cfg@9020000": 0x503,
                **{f"/virtio_mmio@{_MMIO + _MMIO_STEP * number:x}": 0x510 + number for number in range(4)},
            },
        ),
        "none": Iommu(kernel=_NONE),
    },
    kernels=("feature",),
    linux="arm64",
    image="arch/arm64/boot/Image",
    config="arm64.config",
    cross="aarch64-linux-gnu-",
    seats={
        "pl031": Seat("amba", "9010000.pl031"),
        "flash": Seat("platform", "0.flash"),
        "fw-cfg": Seat("platform", "9020000.fw-cfg"),
        "virtio-rng-mmio": Seat(
            "platform", "{n:x}.virtio_mmio", "bus=virtio-mmio-bus.{i}", first=_MMIO, step=_MMIO_STEP
        ),
    },
)
_S390X = Machine(
    arch="s390x",
    debian="s390x",
    packages="qemu-system-s390x gcc-s390x-linux-gnu libc6-dev-s390x-cross",
    qemu="qemu-system-s390x",
    model="s390-ccw-virtio",
    kvm="",
    cpu="max",
    options=("-chardev", "file,id=console,path={console}", "-device", "sclpconsole,chardev=console"),
    kernel="console=ttysclp0",
    share="virtio-9p-ccw,devno=fe.0.ff{number:02x}",  # out of the way of whoever takes a disk
    iommus={"zpci": Iommu()},
    kernels=("feature",),
    linux="s390",
    image="arch/s390/boot/bzImage",
    config="s390x.config",
    cross="s390x-linux-gnu-",
    # A ccw device is driven through its subchannel: the guest's list has that one's address.
    seats={"virtio-blk-ccw": Seat("ccw", "0.0.{n:04x}", "devno=fe.0.{n:04x}", first=0x100, step=1)},
    zpci=True,
)

#: Machines by the name that ``--arch`` takes.
MACHINES: dict[str, Machine] = {"x86_64": _X86_64, "arm64": _ARM64, "s390x": _S390X}


def named(name: str) -> Machine:
    """Return the machine called `name`.

    Raises:
        GuestSpecError: there is none.
    """
    try:
        return MACHINES[name]
    except KeyError:
        raise GuestSpecError(f"there is no architecture {name!r}; take one of {', '.join(MACHINES)}") from None

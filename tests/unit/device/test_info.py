"""What the kernel says of a device, and what it could say instead: hostile bytes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.conftest import ADDRESS
from tests.unit.fake_device import CONFIG, MSIX, FakeDevice
from vfio_user._uapi import lib
from vfio_user.device import info
from vfio_user.device.info import RegionInfo, SparseArea
from vfio_user.errors import MalformedReplyError, VfioIoctlError
from vfio_user.iommu import AddressSpace
from vfio_user.kernel.fd import OwnedFd
from vfio_user.kernel.sysfs import pci_function
from vfio_user.kernel.uapi import DeviceFlags, IrqFlags, RegionFlags

HEAD = 32
SPARSE, TYPE = int(lib.VFIO_REGION_INFO_CAP_SPARSE_MMAP), int(lib.VFIO_REGION_INFO_CAP_TYPE)
MSIX_MAPPABLE = int(lib.VFIO_REGION_INFO_CAP_MSIX_MAPPABLE)


def capability(identity: int, payload: bytes = b"", following: int = 0) -> bytes:
    return struct.pack("=HHI", identity, 1, following) + payload


def sparse(*areas: tuple[int, int], count: int | None = None) -> bytes:
    head = struct.pack("=II", len(areas) if count is None else count, 0)
    return capability(SPARSE, head + b"".join(struct.pack("=QQ", *area) for area in areas))


@pytest.fixture
def fd(device: FakeDevice) -> OwnedFd:
    with AddressSpace("type1v2") as space:
        fd = space.attach(pci_function(ADDRESS))
        space.detach()
    return fd


@pytest.fixture(autouse=True)
def _closed(fd: OwnedFd) -> object:
    yield
    fd.close()


def region(fd: OwnedFd, index: int = 0) -> RegionInfo:
    return info.region_info(fd.fileno(), index, ADDRESS)


def test_device(fd: OwnedFd) -> None:
    said = info.device_info(fd.fileno(), ADDRESS)
    assert said.flags == DeviceFlags.PCI | DeviceFlags.RESET
    assert (said.num_regions, said.num_irqs, said.capabilities) == (9, 5, ())


def test_flags_of_a_later_kernel_are_kept(fd: OwnedFd, device: FakeDevice) -> None:
    device.flags |= 1 << 30
    said = info.device_info(fd.fileno(), ADDRESS)
    assert said.flags & (1 << 30)
    assert said.flags & DeviceFlags.PCI


def test_region(fd: OwnedFd) -> None:
    said = region(fd)
    assert (said.index, said.size, said.file_offset) == (0, 0x1000, 0)
    assert said.flags == RegionFlags.READ | RegionFlags.WRITE | RegionFlags.MMAP
    assert said.mappable_areas == (SparseArea(0, 0x1000),)
    assert region(fd, CONFIG).mappable_areas == ()


def test_interrupt(fd: OwnedFd) -> None:
    said = info.irq_info(fd.fileno(), MSIX, ADDRESS)
    assert (said.index, said.flags, said.count) == (MSIX, IrqFlags.EVENTFD, 8)


@pytest.mark.parametrize("ask", [info.region_info, info.irq_info])
def test_index_that_the_kernel_refuses(fd: OwnedFd, ask: object) -> None:
    assert callable(ask)
    with pytest.raises(VfioIoctlError, match=rf"VFIO_DEVICE_GET_\w+_INFO on {ADDRESS}: .*EINVAL"):
        ask(fd.fileno(), 3, ADDRESS)


def test_sparse_areas_in_order(fd: OwnedFd, device: FakeDevice) -> None:
    device.regions[0] = (0x10_0000, 7)
    device.capabilities[0] = sparse((0x8000, 0x1000), (0, 0x2000), (0x3000, 0))
    assert region(fd).mappable_areas == (SparseArea(0, 0x2000), SparseArea(0x8000, 0x1000))


def test_nothing_of_a_region_can_be_mapped(fd: OwnedFd, device: FakeDevice) -> None:
    device.capabilities[0] = sparse()
    assert region(fd).sparse == ()
    assert region(fd).mappable_areas == ()


def test_chain_of_several(fd: OwnedFd, device: FakeDevice) -> None:
    first = capability(TYPE, struct.pack("=II", 0x8086, 3), following=HEAD + 16)
    second = capability(MSIX_MAPPABLE, following=HEAD + 24)
    device.capabilities[0] = first + second + capability(0x7777, b"later")
    said = region(fd)
    assert (said.type, said.msix_mappable, said.sparse) == ((0x8086, 3), True, None)
    assert [(each.identity, each.payload) for each in said.capabilities] == [
        (TYPE, struct.pack("=II", 0x8086, 3)),
        (MSIX_MAPPABLE, b""),
        (0x7777, b"later"),
    ]


def test_chain_that_runs_backwards(fd: OwnedFd, device: FakeDevice) -> None:
    """The order in the reply is the kernel's business: payloads end where any other begins."""
    inner = capability(MSIX_MAPPABLE)
    outer = capability(TYPE, struct.pack("=II", 1, 2), following=HEAD + 24)
    device.capabilities[0] = outer + b"\0" * 8 + inner + b"\0" * 4
    assert [len(each.payload) for each in region(fd).capabilities] == [16, 4]


@pytest.mark.parametrize(
    ("chain", "words"),
    [
        (sparse((0, 0x1000), count=2), "2 sparse areas do not fit a capability of 24 bytes"),
        (sparse(count=0xFFFF_FFFF), "4294967295 sparse areas do not fit"),
        (sparse((0, 0x2000)), "leaves its region of 0x1000"),
        (sparse((0x1000, 0x1000)), "leaves its region"),
        (sparse((0, 0x800), (0x400, 0x800)), "overlaps another"),
        (sparse(((1 << 64) - 1, (1 << 64) - 1)), "leaves its region"),
        (capability(SPARSE, b"\0" * 4), "has 4 bytes, not 8 at least"),
        (capability(TYPE, b"\0" * 7), "has 7 bytes, not 8"),
        (capability(TYPE, b"\0" * 8, following=HEAD), "comes back to offset 32"),
        (capability(TYPE, b"\0" * 8, following=HEAD + 16), "lies outside of the reply of 48 bytes"),
    ],
)
def test_reply_that_does_not_follow_its_layout(fd: OwnedFd, device: FakeDevice, chain: bytes, words: str) -> None:
    device.capabilities[0] = chain
    with pytest.raises(MalformedReplyError, match=words):
        region(fd)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    identity=st.sampled_from([SPARSE, TYPE, MSIX_MAPPABLE, 0]),
    following=st.sampled_from([0, HEAD + 8, HEAD + 16, 40]) | st.integers(0, (1 << 32) - 1),
    junk=st.lists(st.integers(0, 0x40) | st.integers(0, (1 << 64) - 1), max_size=8),
)
def test_hostile_bytes(fd: OwnedFd, device: FakeDevice, identity: int, following: int, junk: list[int]) -> None:
    device.capabilities[0] = capability(identity, struct.pack(f"={len(junk)}Q", *junk), following)
    try:
        said = region(fd)
    except MalformedReplyError:
        return
    end = 0
    for area in said.mappable_areas:
        assert end <= area.offset < area.end <= said.size
        end = area.end

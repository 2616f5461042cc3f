"""Containers: each way to fail is explained, and nothing stays open."""

from __future__ import annotations

import resource
import struct
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.guest.leaks import nothing_left
from tests.unit.fake_kernel import INFO_SIZE, FakeKernel, avail_capability, range_capability
from vfio_user._uapi import lib
from vfio_user.addresses import IovaRange
from vfio_user.errors import (
    ClosedError,
    IovaError,
    MalformedReplyError,
    UnsupportedError,
    VfioIoctlError,
    VfioOSError,
)
from vfio_user.iommu.container import Container
from vfio_user.iommu.modes import IommuMode

NODE = "/dev/vfio/vfio"


@pytest.fixture
def container(kernel: FakeKernel) -> Iterator[Container]:
    container = Container(IommuMode.TYPE1V2)
    container.set_iommu()
    yield container
    container.close()


# -- opening


@pytest.mark.parametrize(
    ("code", "words"),
    [(2, "modprobe vfio-pci"), (19, "modprobe vfio-pci"), (13, "Run as root"), (1, "Run as root"), (24, "EMFILE")],
)
def test_node_that_can_not_be_opened(kernel: FakeKernel, code: int, words: str) -> None:
    kernel.failing[NODE] = code
    with nothing_left(), pytest.raises(VfioOSError, match=words) as caught:
        Container(IommuMode.TYPE1V2)
    assert caught.value.errno == code
    assert NODE in str(caught.value)


def test_kernel_of_another_version(kernel: FakeKernel) -> None:
    kernel.version = 1
    with nothing_left(), pytest.raises(UnsupportedError, match="speaks VFIO API version 1, not 0"):
        Container(IommuMode.TYPE1V2)


def test_kernel_without_the_mode(kernel: FakeKernel) -> None:
    kernel.extensions.clear()
    with nothing_left(), pytest.raises(UnsupportedError, match="no IOMMU type type1v2: modprobe vfio_iommu_type1"):
        Container(IommuMode.TYPE1V2)


def test_request_that_fails_while_opening(kernel: FakeKernel) -> None:
    kernel.failing["VFIO_CHECK_EXTENSION"] = 5
    with nothing_left(), pytest.raises(VfioIoctlError, match="VFIO_CHECK_EXTENSION on /dev/vfio/vfio"):
        Container(IommuMode.TYPE1)


@pytest.mark.parametrize(
    ("code", "words"),
    [(1, "does not remap interrupts.*allow_unsafe_interrupts=1"), (19, "modprobe vfio_iommu_type1"), (22, "EINVAL")],
)
def test_iommu_that_is_refused(container: Container, kernel: FakeKernel, code: int, words: str) -> None:
    kernel.failing["VFIO_SET_IOMMU"] = code
    with pytest.raises(VfioIoctlError, match=words) as caught:
        container.set_iommu()
    assert (caught.value.errno, caught.value.request, caught.value.device) == (code, "VFIO_SET_IOMMU", NODE)


# -- mapping


def test_map_and_unmap(container: Container, kernel: FakeKernel) -> None:
    container.map(0x1000, 0x7000_0000, 0x2000)
    assert kernel.mappings == {0x1000: 0x2000}
    assert container.unmap(0x1000, 0x2000) == 0x2000
    assert container.unmap(0x1000, 0x2000) == 0
    assert kernel.mappings == {}


@pytest.mark.parametrize("unmap_all", [True, False])
def test_unmap_all_with_and_without_the_flag(container: Container, kernel: FakeKernel, unmap_all: bool) -> None:
    if not unmap_all:
        kernel.extensions.discard(int(lib.VFIO_UNMAP_ALL))
    for iova in (0, 0x1000, 1 << 32, 1 << 63):
        container.map(iova, 0x7000_0000, 0x1000)
    assert container.unmap_all() == 0x4000
    assert kernel.mappings == {}


def test_mapped_already_is_never_success(container: Container) -> None:
    container.map(0x1000, 0x7000_0000, 0x2000)
    with pytest.raises(IovaError, match="IOVA 0x2000, 0x1000 bytes: mapped already"):
        container.map(0x2000, 0x7000_0000, 0x1000)


def test_memlock(container: Container, kernel: FakeKernel) -> None:
    kernel.failing["VFIO_IOMMU_MAP_DMA"] = 12
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    limit = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft >> 10} KiB"
    with pytest.raises(VfioIoctlError, match=rf"RLIMIT_MEMLOCK \({limit}; 8192 KiB were asked for\).*ulimit -l"):
        container.map(0, 0x7000_0000, 8 << 20)


def test_no_mappings_left(container: Container, kernel: FakeKernel) -> None:
    kernel.failing["VFIO_IOMMU_MAP_DMA"] = 28
    with pytest.raises(VfioIoctlError, match=r"dma_avail: 7\).*dma_entry_limit.*pool\(\)"):
        container.map(0, 0x7000_0000, 0x1000)
    kernel.failing["VFIO_IOMMU_GET_INFO"] = 5
    with pytest.raises(VfioIoctlError, match=r"ENOSPC.*dma_entry_limit") as caught:
        container.map(0, 0x7000_0000, 0x1000)
    assert caught.value.errno == 28, "the failure that matters is the first one"


def test_memory_that_can_not_be_pinned(container: Container, kernel: FakeKernel) -> None:
    kernel.failing["VFIO_IOMMU_MAP_DMA"] = 14
    with pytest.raises(VfioIoctlError, match="can't be pinned"):
        container.map(0, 0x7000_0000, 0x1000)


def test_use_after_close(container: Container) -> None:
    container.close()
    container.close()
    for refused in (lambda: container.map(0, 0, 0x1000), container.unmap_all, container.info, container.set_iommu):
        with pytest.raises(ClosedError, match="/dev/vfio/vfio is closed"):
            refused()
    assert repr(container) == "<Container type1v2 closed>"


# -- what the kernel says


def test_info(container: Container, kernel: FakeKernel) -> None:
    kernel.page_sizes = 0x4020_1000
    info = container.info()
    assert info.page_sizes == 0x4020_1000
    assert info.iova_ranges == (IovaRange(0, 0xFEDF_FFFF),)
    assert info.dma_avail == 7


def test_kernel_without_capabilities(container: Container, kernel: FakeKernel) -> None:
    kernel.chain = b""
    assert container.info().dma_avail is None
    assert container.info().iova_ranges == (IovaRange(0, (1 << 39) - 1),)


def test_no_range_at_all_is_not_the_default(container: Container, kernel: FakeKernel) -> None:
    kernel.chain = range_capability()
    assert container.info().iova_ranges == ()


def test_many_ranges(container: Container, kernel: FakeKernel) -> None:
    ranges = [(n << 32, (n << 32) + 0xFFFF) for n in range(200)]
    kernel.chain = range_capability(*ranges)
    assert [(each.first, each.last) for each in container.info().iova_ranges] == ranges


@pytest.mark.parametrize(
    ("chain", "words"),
    [
        (range_capability((5, 4)), "ends before it begins"),
        (range_capability((0, 1), count=2), "2 IOVA ranges at 40 do not fit the reply of 56 bytes"),
        (range_capability((0, 1), count=0xFFFF_FFFF), "do not fit the reply"),
        (range_capability((0, 1), following=INFO_SIZE), "comes back to offset 24"),
        (range_capability((0, 1), following=4000), "capability at 4000 lies outside"),
        (range_capability()[:8], "lies outside of the reply of 32 bytes"),
        (avail_capability(1)[:10], "lies outside of the reply of 34 bytes"),
    ],
)
def test_reply_that_does_not_follow_its_layout(
    container: Container, kernel: FakeKernel, chain: bytes, words: str
) -> None:
    kernel.chain = chain
    with pytest.raises(MalformedReplyError, match=words):
        container.info()


def test_iommu_without_a_page_size(container: Container, kernel: FakeKernel) -> None:
    kernel.page_sizes = 0
    with pytest.raises(MalformedReplyError, match="no page size"):
        container.info()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.binary(max_size=200), st.sampled_from([0, 1, 2, 3]), st.integers(0, 64))
def test_hostile_bytes(container: Container, kernel: FakeKernel, junk: bytes, identity: int, count: int) -> None:
    kernel.chain = struct.pack("=HHIII", identity, 1, 0, count, 0) + junk
    try:
        ranges = container.info().iova_ranges
    except MalformedReplyError:
        return
    assert all(each.first <= each.last for each in ranges)

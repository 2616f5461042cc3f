"""Peer to peer: one device's memory as a target of another's DMA, over resets."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence

import pytest

import vfio_user
from tests.guest.leaks import nothing_left
from tests.guest.reset_helpers import Find, acting
from vfio_user import AddressSpace, Iova, PciDevice, PeerMapping
from vfio_user.drivers.edu import Edu
from vfio_user.errors import (
    AlignmentError,
    BoundsError,
    ClosedError,
    IovaError,
    NotRestoredError,
    VfioIoctlError,
    ZappedError,
)
from vfio_user.pci import Command

LIMIT = Edu.IOVA_LIMIT


@pytest.fixture
def edu(vfio_device: Find, reset_mode: str) -> Iterator[Edu]:
    with nothing_left(), vfio_user.open(vfio_device("edu").address, mode=reset_mode) as pci, Edu(pci) as driver:
        yield driver


@pytest.fixture
def memory(vfio_device: Find, edu: Edu) -> Iterator[PciDevice]:
    with vfio_user.open(vfio_device("ivshmem").address, address_space=edu.pci.address_space) as pci:
        yield pci


def peers(pci: PciDevice) -> int:
    return len(pci.vdev.memory.peers)


def count(space: AddressSpace) -> int:
    return len(space.mappings)


def ended(mapping: PeerMapping) -> bool:
    return mapping.ended


def copy_through(edu: Edu, mapping: PeerMapping, offset: int, text: bytes) -> None:
    """Let edu write into the other device's memory and read it back; check both by the processor."""
    space = edu.pci.address_space
    with space.alloc(4096, iova_limit=LIMIT) as buffer:
        buffer[: len(text)] = text
        edu.copy_to_device(buffer[: len(text)])
        edu.copy_from_device(mapping.part(offset, len(text)))
        assert bytes(mapping.region.view(mapping.offset + offset, len(text))) == text
        mapping.region.view(mapping.offset + offset, 4)[:] = text[:4][::-1]
        edu.copy_to_device(mapping.part(offset, len(text)))
        edu.copy_from_device(buffer[2048 : 2048 + len(text)])
        assert bytes(buffer[2048 : 2048 + len(text)]) == text[:4][::-1] + text[4:]


@pytest.mark.parametrize("how", ["function", "set", "decoding"])
def test_mapped_revoked_and_mapped_again(edu: Edu, memory: PciDevice, how: str) -> None:
    seen: list[tuple[bool, ...]] = []
    bar = memory.bar(2)
    space = edu.pci.address_space

    def look() -> None:
        seen.append(tuple(peer.mapped for peer in memory.vdev.memory.peers))

    def reset(pci: PciDevice) -> None:
        look()
        vfio_user.PCI_OPS.reset(pci.vdev)

    def hot_reset(pci: PciDevice, group_fds: Sequence[int]) -> None:
        look()
        vfio_user.PCI_OPS.reset_set(pci.vdev, group_fds)

    memory.vdev.ops = acting(reset, hot_reset)
    before = space.mappings
    with bar.map_for(space, iova_limit=LIMIT) as whole, bar.map_for(space, 0x8000, 0x2000, iova_limit=LIMIT) as part:
        assert whole.size == bar.size
        assert memory.vdev.memory.peers == (whole, part)
        copy_through(edu, whole, 0x1000, b"first time")
        for turn in range(2):
            iovas = (whole.iova, part.iova)
            if how == "function":
                memory.reset()
            elif how == "set":
                memory.device_set.hot_reset()
            else:
                memory.config.set_command(disable=int(Command.MEMORY))
                look()
                with pytest.raises(IovaError, match="mapped already"):
                    space.alloc(4096, iova=whole.iova)
                memory.config.set_command(enable=int(Command.MEMORY))
            assert (whole.mapped, part.mapped) == (True, True)
            assert (whole.iova, part.iova) == iovas
            copy_through(edu, whole, 0x2000, b"whole %d" % turn)
            copy_through(edu, part, 0x1000, b"part %d" % turn)
            assert bytes(bar.view(0x9000, 6))[4:] == b" %d" % turn
        assert seen == [(False, False)] * 2
    assert (whole.ended, part.ended) == (True, True)
    assert space.mappings == before
    assert peers(memory) == 0


def test_the_device_that_does_the_dma_may_be_reset_too(edu: Edu, memory: PciDevice) -> None:
    with memory.bar(2).map_for(edu.pci.address_space, iova_limit=LIMIT) as mapping:
        edu.pci.reset()
        assert mapping.mapped
        copy_through(edu, mapping, 0, b"still there")


def test_what_does_not_come_back_is_reported_and_can_be_tried_again(
    edu: Edu, memory: PciDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = edu.pci.address_space
    bar = memory.bar(2)
    with bar.map_for(space, 0, 0x1000, iova_limit=LIMIT) as bad, bar.map_for(space, 0x1000, iova_limit=LIMIT) as good:
        verb = "map_file" if space.backend.maps_files else "map"
        map_dma = getattr(space.backend, verb)

        def refuse(iova: Iova, *source: int, **rights: bool) -> Iova:
            if iova == bad.iova:
                raise VfioIoctlError(errno.ENOSPC, "VFIO_IOMMU_MAP_DMA")
            place: Iova = map_dma(iova, *source, **rights)
            return place

        monkeypatch.setattr(space.backend, verb, refuse)
        for again in (memory.reset, memory.device_set.hot_reset):
            with pytest.raises(NotRestoredError) as caught:
                again()
            (failure,) = caught.value.exceptions
            assert isinstance(failure, VfioIoctlError)
            assert failure is bad.error
            assert "restore() tries again" in failure.__notes__[0]
            assert (bad.mapped, good.mapped, good.error) == (False, True, None)
            copy_through(edu, good, 0, b"the other works")
        with pytest.raises(VfioIoctlError):
            bad.restore()
        monkeypatch.undo()
        bad.restore()
        assert (bad.mapped, bad.error) == (True, None)
        copy_through(edu, bad, 0, b"back again")


def test_mappings_end_with_their_device_and_their_space(vfio_device: Find, reset_mode: str) -> None:
    with nothing_left():
        space = AddressSpace(reset_mode)
        edu = vfio_user.open(vfio_device("edu").address, address_space=space)
        with vfio_user.open(vfio_device("ivshmem").address, address_space=space) as memory:
            mapping = memory.bar(2).map_for(space)
            assert count(space) == 1
        assert (mapping.ended, count(space)) == (True, 0)
        mapping.unmap()
        with pytest.raises(ClosedError):
            mapping.restore()
        with vfio_user.open(vfio_device("ivshmem").address, address_space=space) as memory:
            mapping = memory.bar(2).map_for(space)
            other = memory.bar(2).map_for(space, 0x1000, 0x1000)
            memory.config.set_command(disable=int(Command.MEMORY))
            assert not mapping.mapped
            other.unmap()
            assert space.unmap_all() == 0, "what is away is not mapped"
            assert ended(mapping)
            memory.config.set_command(enable=int(Command.MEMORY))
            assert count(space) == 0
        edu.close()
        space.close()


def test_wrong_parts_are_named(edu: Edu, memory: PciDevice) -> None:
    bar, space = memory.bar(2), edu.pci.address_space
    for offset, size in ((-0x1000, 0x1000), (0, bar.size + 0x1000), (bar.size, 0x1000), (0, 0), (0, -1)):
        with pytest.raises(BoundsError):
            bar.map_for(space, offset, size)
    with pytest.raises(AlignmentError):
        bar.map_for(space, 0x10, 0x1000)
    with pytest.raises(AlignmentError):
        bar.map_for(space, 0, 0x10)
    memory.config.set_command(disable=int(Command.MEMORY))
    with pytest.raises(ZappedError):
        bar.map_for(space)
    memory.config.set_command(enable=int(Command.MEMORY))
    with bar.map_for(space) as mapping:
        with pytest.raises(BoundsError):
            mapping.part(bar.size, 1)
        assert len(mapping.part(16)) == bar.size - 16
    assert peers(memory) == 0

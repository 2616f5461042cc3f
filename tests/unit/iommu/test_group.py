"""Groups and the back end made of them: each failure is explained, and everything is closed after it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.guest.leaks import nothing_left
from tests.unit.conftest import ADDRESS
from tests.unit.fake_device import FakeDevice
from tests.unit.fake_kernel import FakeKernel
from tests.unit.fake_sysfs import FakeSysfs
from vfio_user._uapi import lib
from vfio_user.errors import (
    ArgumentError,
    ClosedError,
    IovaError,
    NotViableError,
    UnsupportedError,
    VfioError,
    VfioIoctlError,
    VfioOSError,
)
from vfio_user.iommu import AddressSpace, pagemap
from vfio_user.iommu.containers import ContainerBackend
from vfio_user.iommu.group import Group
from vfio_user.iommu.modes import IommuMode
from vfio_user.kernel.sysfs import PciFunction, pci_function

NODE = "/dev/vfio/7"


@pytest.fixture
def function(device: FakeDevice) -> PciFunction:
    return pci_function(ADDRESS)


# -- the node


def test_nothing_of_the_group_is_bound(kernel: FakeKernel, tree: FakeSysfs) -> None:
    tree.add(ADDRESS, driver="edu", group=7)
    kernel.failing[NODE] = 2
    with pytest.raises(VfioOSError, match=rf"No device of group 7 \({ADDRESS}\) is bound to vfio-pci.*vfio-user bind"):
        Group(7)


def test_node_is_missing_though_a_device_is_bound(kernel: FakeKernel, device: FakeDevice) -> None:
    kernel.failing[NODE] = 2
    with pytest.raises(VfioOSError, match=r"modprobe vfio-pci.* pass the node in"):
        Group(7)


def test_group_that_is_not_there(kernel: FakeKernel, tree: FakeSysfs) -> None:
    kernel.failing["/dev/vfio/9"] = 2
    with pytest.raises(VfioOSError, match="There is no IOMMU group 9") as caught:
        Group(9)
    assert "none" not in str(caught.value)


@pytest.mark.parametrize(("noiommu", "node"), [(False, NODE), (True, "/dev/vfio/noiommu-7")])
def test_node_of_another_user(kernel: FakeKernel, device: FakeDevice, noiommu: bool, node: str) -> None:
    kernel.failing[node] = 13
    with nothing_left(), pytest.raises(VfioOSError, match=rf"open {node}: .*chown \$USER {node}$"):
        Group(7, noiommu=noiommu)


def test_group_of_another_process(kernel: FakeKernel, device: FakeDevice) -> None:
    kernel.failing[NODE] = 16
    with nothing_left(), pytest.raises(VfioOSError, match=rf"Group 7 \({ADDRESS}\) is open already.*address_space="):
        Group(7)


def test_status(kernel: FakeKernel, device: FakeDevice) -> None:
    group = Group(7)
    assert group.viable
    assert group.status == lib.VFIO_GROUP_FLAGS_VIABLE
    group.require_viable()
    assert repr(group) == "<Group 7>"
    group.close()
    group.close()
    assert repr(group) == "<Group 7 closed>"
    with pytest.raises(ClosedError, match="/dev/vfio/7 is closed"):
        _ = group.status


# -- attaching


def attach(function: PciFunction, mode: IommuMode = IommuMode.TYPE1V2, **options: str) -> None:
    with AddressSpace(mode, allow_noiommu=mode is IommuMode.NOIOMMU) as space:
        space.attach(function, **options)


def test_device_of_a_foreign_driver_is_named(kernel: FakeKernel, function: PciFunction, tree: FakeSysfs) -> None:
    tree.add("0000:01:00.1", driver="snd_hda_intel", group=7)
    kernel.viable = False
    with nothing_left(), pytest.raises(NotViableError, match=r"0000:01:00.1 \(driver snd_hda_intel\)") as caught:
        attach(function)
    assert caught.value.culprits == (("0000:01:00.1", "snd_hda_intel"),)
    assert "vfio-user bind 0000:01:00.1" in str(caught.value)


def test_culprit_that_sysfs_does_not_show(kernel: FakeKernel, function: PciFunction) -> None:
    kernel.viable = False
    with nothing_left(), pytest.raises(NotViableError, match="group 7 is not viable: a device is in it") as caught:
        attach(function)
    assert "/devices/it/" not in str(caught.value)


def test_function_without_a_group(kernel: FakeKernel, tree: FakeSysfs) -> None:
    tree.add(ADDRESS, driver="vfio-pci")
    with nothing_left(), pytest.raises(UnsupportedError, match=r"no IOMMU is active on this machine.*intel_iommu=on"):
        attach(pci_function(ADDRESS))
    tree.add("0000:02:00.0", group=3)
    with nothing_left(), pytest.raises(UnsupportedError, match="no IOMMU translates for its bus"):
        attach(pci_function(ADDRESS))


def test_device_that_is_not_bound(kernel: FakeKernel, function: PciFunction, tree: FakeSysfs) -> None:
    kernel.failing["VFIO_GROUP_GET_DEVICE_FD"] = 19
    tree.bind(ADDRESS, "edu")
    with nothing_left(), pytest.raises(UnsupportedError, match=rf"{ADDRESS} is not bound to vfio-pci \(driver: edu\)"):
        attach(function)
    tree.bind(ADDRESS, "vfio-pci")
    with nothing_left(), pytest.raises(UnsupportedError, match=f"group 7 has no device {ADDRESS}"):
        attach(function)


def test_virtual_function_wants_a_token(kernel: FakeKernel, function: PciFunction) -> None:
    kernel.tokens[ADDRESS] = "bd8d9d2b-5a5f-4f5a-a211-f591514ba1f3"
    with nothing_left(), pytest.raises(VfioIoctlError, match=r"needs that PF's token\..*vf_token=UUID"):
        attach(function)
    with nothing_left(), AddressSpace("type1") as space:
        space.attach(function, vf_token=kernel.tokens[ADDRESS]).close()
        space.detach()


@pytest.mark.parametrize(
    ("request_name", "code", "words"),
    [
        ("VFIO_GROUP_GET_STATUS", 5, "EIO"),
        ("VFIO_GROUP_SET_CONTAINER", 22, "in a container already"),
        ("VFIO_GROUP_SET_CONTAINER", 1, "CAP_SYS_RAWIO"),
        ("VFIO_SET_IOMMU", 1, "does not remap interrupts"),
        ("VFIO_GROUP_GET_DEVICE_FD", 16, "open already, through its group or its own node"),
        ("VFIO_IOMMU_GET_INFO", 5, "EIO"),
    ],
)
def test_each_step_unwinds(kernel: FakeKernel, function: PciFunction, request_name: str, code: int, words: str) -> None:
    kernel.failing[request_name] = code
    with nothing_left(), pytest.raises(VfioIoctlError, match=words) as caught:
        attach(function)
    assert caught.value.errno == code
    kernel.failing.clear()
    with nothing_left():
        backend = ContainerBackend(IommuMode.TYPE1V2)
        backend.attach(function).close()
        assert [group.number for group in backend.groups] == [7]
        backend.close()


def test_failed_attach_can_be_tried_again(kernel: FakeKernel, function: PciFunction) -> None:
    with nothing_left(), AddressSpace("type1v2") as space:
        kernel.failing["VFIO_GROUP_GET_DEVICE_FD"] = 16
        with pytest.raises(VfioIoctlError):
            space.attach(function)
        kernel.failing.clear()
        space.attach(function).close()
        space.detach()
        assert kernel.asked.count("VFIO_SET_IOMMU") == 2, "the kernel forgot the type with the group"


def test_devices_of_one_group_and_of_another(kernel: FakeKernel, function: PciFunction, tree: FakeSysfs) -> None:
    others = {"0000:01:00.1": 7, "0000:02:00.0": 8}
    for address, number in others.items():
        tree.add(address, driver="vfio-pci", group=number)
        kernel.devices[address] = FakeDevice()
    with nothing_left(), AddressSpace("type1v2") as space:
        for each in (function, *map(pci_function, others)):
            space.attach(each).close()
            space.detach()
        assert kernel.asked.count("VFIO_GROUP_SET_CONTAINER") == 2
        assert kernel.asked.count("VFIO_SET_IOMMU") == 1
    for address in others:
        kernel.devices[address].close()


def test_info_without_a_group(kernel: FakeKernel) -> None:
    backend = ContainerBackend(IommuMode.TYPE1)
    with pytest.raises(ClosedError, match="no device is attached"):
        backend.info()
    backend.close()


@pytest.fixture
def noiommu(kernel: FakeKernel, function: PciFunction, monkeypatch: pytest.MonkeyPatch) -> Iterator[AddressSpace]:
    kernel.extensions.add(int(lib.VFIO_NOIOMMU_IOMMU))
    kernel.failing["VFIO_IOMMU_GET_INFO"] = kernel.failing["VFIO_IOMMU_UNMAP_DMA"] = 25
    frames = {4096: 0x8000_0000, 8192: 0x9000_0000}
    monkeypatch.setattr(pagemap, "lock_and_find", lambda vaddr, size: frames[size])
    with AddressSpace("noiommu", allow_noiommu=True) as space, pytest.raises(UnsupportedError, match="go round it"):
        space.attach(function)
    monkeypatch.setattr(PciFunction, "noiommu", True)
    with AddressSpace("type1v2") as space, pytest.raises(UnsupportedError, match="mode type1v2 needs one"):
        space.attach(function)
    with nothing_left(), AddressSpace("noiommu", allow_noiommu=True) as space:
        space.attach(function).close()
        yield space
        space.detach()


def test_noiommu_gives_physical_addresses(noiommu: AddressSpace) -> None:
    assert noiommu.iova_ranges == ()
    with noiommu.alloc(4096) as small, noiommu.alloc(8192) as large:
        assert (small.iova, large.iova) == (0x8000_0000, 0x9000_0000)
        assert [each.iova for each in noiommu.mappings] == [0x8000_0000, 0x9000_0000]
        with pytest.raises(IovaError, match="mapped already; map it once"):
            noiommu.map(small)
        assert noiommu.unmap_all() == 4096 + 8192
    assert noiommu.unmap_all() == 0


def test_noiommu_has_no_choice(noiommu: AddressSpace) -> None:
    with pytest.raises(ArgumentError, match=r"IOVA 0x1000 can't be chosen.*at its physical address, no other"):
        noiommu.alloc(4096, iova=0x1000)
    with pytest.raises(IovaError, match="0x80000000, 0x1000 bytes, reaches beyond the limit 0x10000000"):
        noiommu.alloc(4096, iova_limit=1 << 28)
    with noiommu.alloc(4096, iova_limit=1 << 32) as buffer:
        assert buffer.iova == 0x8000_0000, "the failed one was unlocked"


def test_short_unmap_keeps_the_memory(kernel: FakeKernel, function: PciFunction) -> None:
    with AddressSpace("type1v2") as space:
        space.attach(function).close()
        buffer = space.alloc(8192)
        kernel.short = 4096
        with pytest.raises(VfioError, match="unmapped 0x1000 bytes"):
            buffer.close()
        assert not buffer.closed
        kernel.mappings[buffer.iova] = 8192
        kernel.short = 0
        buffer.close()
        space.detach()


def test_what_ended_with_the_group_is_unmapped(kernel: FakeKernel, function: PciFunction) -> None:
    """The kernel takes a group out of its container when the last device of it is unplugged."""
    with AddressSpace("type1v2") as space:
        space.attach(function).close()
        buffer, other = space.alloc(4096), space.alloc(4096)
        kernel.failing["VFIO_IOMMU_UNMAP_DMA"] = 22
        for code in (None, 5):  # still there, and nobody knows
            if code:
                kernel.failing["VFIO_GROUP_GET_STATUS"] = code
            with pytest.raises(VfioIoctlError):
                buffer.close()
            assert not buffer.closed
        kernel.failing["VFIO_GROUP_GET_STATUS"] = 19
        buffer.close()
        assert space.unmap_all() == 4096
        assert other.closed
        space.detach()

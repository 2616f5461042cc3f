"""Opening and closing real devices, what they say of themselves, and what they refuse."""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import vfio_user
from tests.guest.leaks import census, nothing_left
from vfio_user import AddressSpace, PciDevice, container_of, testing
from vfio_user.errors import (
    ArgumentError,
    BoundsError,
    BusyError,
    ClosedError,
    ForkedError,
    NotViableError,
    UnsupportedError,
    VfioIoctlError,
    VfioOSError,
)
from vfio_user.iommu.container import Container
from vfio_user.iommu.group import Group
from vfio_user.iommu.modes import IommuMode
from vfio_user.pci import CapabilityId, Command
from vfio_user.testing import GuestDevice

Find = Callable[[str], GuestDevice]


def test_opening_changes_nothing(vfio_device: Find, iommu_mode: str) -> None:
    with nothing_left(), vfio_user.open(vfio_device("edu").address, mode=iommu_mode) as pci:
        assert not pci.config.command & Command.MASTER
        assert pci.address_space.mode.value == iommu_mode
        assert pci.irqs.msi.vectors == ()


def test_config_space_agrees_with_sysfs(vfio_device: Find) -> None:
    for kind in ("edu", "nvme"):
        address = vfio_device(kind).address
        folder = Path(f"/sys/bus/pci/devices/{address}")
        with vfio_user.open(address) as pci:
            assert pci.config.vendor_id == int((folder / "vendor").read_text(), 16)
            assert pci.config.device_id == int((folder / "device").read_text(), 16)
            assert pci.config.class_code == int((folder / "class").read_text(), 16)
            assert pci.config.subsystem_id == int((folder / "subsystem_device").read_text(), 16)
            assert pci.config.dump()[0x40:0x100] == (folder / "config").read_bytes()[0x40:0x100]


def test_capabilities_are_found(vfio_device: Find) -> None:
    with vfio_user.open(vfio_device("nvme").address) as pci:
        names = {each.identity for each in pci.config.capabilities()}
        assert {CapabilityId.EXPRESS, CapabilityId.MSIX} <= names
        assert pci.config.size == 4096
        assert all(each.offset >= 0x100 for each in pci.config.extended_capabilities())


def test_regions_have_the_sizes_of_sysfs(vfio_device: Find) -> None:
    for kind in ("edu", "nvme", "ivshmem"):
        address = vfio_device(kind).address
        resources = Path(f"/sys/bus/pci/devices/{address}/resource").read_text().splitlines()
        with vfio_user.open(address) as pci:
            for number, line in enumerate(resources[:6]):
                start, end, _ = (int(word, 16) for word in line.split())
                bar = pci.bars[number]
                assert (bar.size if bar else 0) == (end - start + 1 if end else 0)


def test_large_bars_are_congruent_with_huge_pages(vfio_device: Find) -> None:
    import numpy

    with vfio_user.open(vfio_device("ivshmem").address) as pci:
        bar = pci.bar(2)
        view = bar.array("u1")
        assert view.ctypes.data % min(bar.size, 2 << 20) == 0
        view[:4096] = numpy.arange(4096, dtype="u1")
        assert bar.pread(0, 4096) == bytes(range(256)) * 16
        del view


def test_every_way_to_a_register_sees_the_same(vfio_device: Find) -> None:
    with vfio_user.open(vfio_device("edu").address) as pci:
        bar = pci.bar(0)
        assert bar.read32(0) == 0x010000ED
        assert bar.pread(0, 4) == bytes.fromhex("ed000001")
        with bar.access() as mmio:
            mmio.write32(4, 0x12345678)
            assert mmio.read32(4) == 0x12345678 ^ 0xFFFFFFFF
        bar.pwrite(4, (0x0F0F0F0F).to_bytes(4, "little"))
        assert bar.read32(4) == 0xF0F0F0F0
        assert bar.array("<u4")[1] == 0xF0F0F0F0


def test_device_in_use_is_refused(vfio_device: Find, iommu_mode: str) -> None:
    address = vfio_device("edu").address
    with vfio_user.open(address, mode=iommu_mode) as pci, nothing_left():
        with pytest.raises(BusyError, match=r"open in this process"):
            vfio_user.open(address, mode=iommu_mode)
        with pytest.raises(BusyError, match=r"open in this process"):
            vfio_user.open(address, address_space=pci.address_space)


def test_several_devices_of_a_group_and_several_groups_in_a_space(
    iommu_mode: str,
) -> None:
    addresses = [each.address for each in (*testing.devices("edu"), testing.device("nvme"))]
    with nothing_left(), vfio_user.open_all(addresses, mode=iommu_mode) as devices:
        assert len({device.address_space for device in devices}) == 1
        for device in devices[:-1]:
            assert device.bar(0).read32(0) == 0x010000ED
        assert len(vfio_user.open_devices()) == len(addresses)


def test_group_leaves_its_container(vfio_device: Find, iommu_mode: str) -> None:
    mode = IommuMode(iommu_mode)
    if mode is IommuMode.IOMMUFD:
        mode = IommuMode.COMPAT_TYPE1V2
    function = vfio_user.pci_function(vfio_device("edu").address)
    assert function.iommu_group is not None
    with nothing_left():
        container, group = Container(mode), Group(function.iommu_group)
        with container.fd, group.fd:
            group.set_container(container.fd)
            container.set_iommu()
            if mode in (IommuMode.TYPE1, IommuMode.TYPE1V2):  # iommufd's stand-in does not mind
                with group.open_device(str(function.address)), pytest.raises(VfioIoctlError) as caught:
                    group.unset_container()
                assert caught.value.errno == errno.EBUSY
            states = [group.in_container]
            group.unset_container()
            states.append(group.in_container)
            group.set_container(container.fd)
            states.append(group.in_container)
            assert states == [True, False, True]


def test_group_that_is_not_viable_names_the_culprit(iommu_mode: str) -> None:
    # Give one of two functions that share a group to a driver of the kernel.
    first, second = testing.devices("edu")[1:3]
    folder = Path(f"/sys/bus/pci/devices/{second.address}")
    (folder / "driver" / "unbind").write_text(second.address)
    try:
        (folder / "driver_override").write_text("uio_pci_generic")
        os.system("modprobe uio_pci_generic")
        Path("/sys/bus/pci/drivers_probe").write_text(second.address)
        assert (folder / "driver").resolve().name == "uio_pci_generic"
        with nothing_left(), pytest.raises(NotViableError, match=second.address) as caught:
            vfio_user.open(first.address, mode=iommu_mode)
        assert caught.value.culprits == ((second.address, "uio_pci_generic"),)
    finally:
        if (folder / "driver").exists():
            (folder / "driver" / "unbind").write_text(second.address)
        (folder / "driver_override").write_text("vfio-pci")
        Path("/sys/bus/pci/drivers_probe").write_text(second.address)
    vfio_user.open(first.address).close()


def test_missing_and_unbound_devices_are_explained() -> None:
    with nothing_left():
        with pytest.raises(ArgumentError, match=r"there is no PCI function 0000:7f:1f\.7"):
            vfio_user.open("7f:1f.7")
        with pytest.raises(ArgumentError, match=r"not a PCI address"):
            vfio_user.open("eth0")
        # The host bridge has a group, and no VFIO driver.
        with pytest.raises((VfioOSError, UnsupportedError), match=r"bound to vfio-pci|no IOMMU group"):
            vfio_user.open("0000:00:00.0")


def test_wrong_accesses_are_named_and_harmless(vfio_device: Find) -> None:
    with vfio_user.open(vfio_device("edu").address) as pci:
        bar = pci.bar(0)
        with nothing_left():
            for offset in (-4, bar.size, bar.size - 2, 1 << 64, -(1 << 70)):
                with pytest.raises(BoundsError):
                    bar.read32(offset)
                with pytest.raises(BoundsError):
                    bar.write32(offset, 0)
            for offset in (1, 2, 3):
                with pytest.raises(ArgumentError, match=r"multiple|align"):
                    bar.read32(offset)
            for value in (-1, 1 << 32):
                with pytest.raises(ArgumentError):
                    bar.write32(4, value)
            with pytest.raises(TypeError):
                bar.read32("0")  # type: ignore[arg-type]
            with pytest.raises(BoundsError):
                bar.pread(bar.size - 1, 2)
            with pytest.raises(UnsupportedError, match=r"no BAR 5.*it has: 0"):
                pci.bar(5)
            with pytest.raises(ArgumentError):
                bar.poll_until(0, mask=0xFF, equals=0x100, timeout=1)
        assert bar.read32(0) == 0x010000ED


def test_closed_device_is_refused_everywhere(vfio_device: Find) -> None:
    pci = vfio_user.open(vfio_device("edu").address)
    bar, space = pci.bar(0), pci.address_space
    pci.close()
    pci.close()
    for use in (
        lambda: bar.read32(0),
        lambda: bar.pread(0, 4),
        lambda: bar.write32(0, 0),
        lambda: bar.view(),
        lambda: pci.config.vendor_id,
        lambda: pci.irqs.msi.enable(1),
        lambda: pci.reset(),
        lambda: space.alloc(4096),
    ):
        with pytest.raises(ClosedError):
            use()
    assert "closed" in repr(pci)


def test_a_forked_child_is_refused_and_holds_nothing(vfio_device: Find) -> None:
    with vfio_user.open(vfio_device("edu").address) as pci:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                pci.bar(0).read32(0)
            except ForkedError:
                try:
                    pci.config.vendor_id  # noqa: B018
                except ForkedError:
                    held = [name for name in census().fds if name.startswith(("/dev/vfio", "anon_inode:[vfio"))]
                    code = 2 if held else 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert pci.bar(0).read32(0) == 0x010000ED


def test_address_space_and_device_close_in_any_order(vfio_device: Find, iommu_mode: str) -> None:
    address = vfio_device("edu").address
    with nothing_left():
        space = AddressSpace(iommu_mode)
        pci = vfio_user.open(address, address_space=space)
        buffer = space.alloc(8192)
        space.close()
        assert buffer.closed
        assert pci.bar(0).read32(0) == 0x010000ED
        pci.close()
        buffer.close()
    with nothing_left():
        space = AddressSpace(iommu_mode)
        pci = vfio_user.open(address, address_space=space)
        buffer = space.alloc(8192)
        pci.close()
        buffer.close()
        with vfio_user.open(address, address_space=space) as again:
            assert again.bar(0).read32(0) == 0x010000ED
        space.close()


def test_variant_device_overrides_single_ops(vfio_device: Find) -> None:
    calls = []

    def reset(vdev: vfio_user.VfioDevice) -> None:
        calls.append(container_of(vdev, PciDevice.vdev).address)
        vfio_user.PCI_OPS.reset(vdev)

    ops = dataclasses.replace(vfio_user.PCI_OPS, name="variant", reset=reset)
    with vfio_user.open(vfio_device("edu").address, ops=ops) as pci:
        pci.bar(0).write32(4, 1)
        pci.reset()
        assert calls == [pci.address]
        assert pci.bar(0).read32(0) == 0x010000ED

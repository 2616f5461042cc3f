"""Opening devices: what is refused before anything is touched, and all or none of several."""

from __future__ import annotations

import dataclasses
import errno
import threading
from collections.abc import Iterator

import pytest

import vfio_user
from tests.guest.leaks import nothing_left
from tests.unit.conftest import ADDRESS
from tests.unit.fake_device import FakeDevice
from tests.unit.fake_kernel import FakeKernel
from tests.unit.fake_sysfs import FakeSysfs
from vfio_user import AddressSpace, IommuMode, open_devices
from vfio_user.addresses import PciAddress
from vfio_user.errors import (
    ArgumentError,
    BusyError,
    DeadlineError,
    NotViableError,
    UnsupportedError,
    VfioError,
    VfioIoctlError,
)
from vfio_user.iommu.group import Group
from vfio_user.kernel.fd import OwnedFd
from vfio_user.kernel.sysfs import PciFunction

SECOND, THIRD = "0000:01:00.1", "0000:02:00.0"
TOKEN, OTHER = "bd8d9d2b-5a5f-4f5a-a211-f591514ba1f3", "2ab74924-c335-45f4-9b16-8569e5b08258"


@pytest.fixture
def three(device: FakeDevice, kernel: FakeKernel, tree: FakeSysfs) -> Iterator[list[str]]:
    """Two devices in group 7, one in group 8."""
    for address, group in ((SECOND, 7), (THIRD, 8)):
        tree.add(address, driver="vfio-pci", group=group)
        kernel.devices[address] = FakeDevice()
    yield [ADDRESS, SECOND, THIRD]
    kernel.devices[SECOND].close()
    kernel.devices[THIRD].close()


@pytest.mark.parametrize("mode", ["type1", "type1v2", IommuMode.TYPE1V2])
def test_open_and_close(device: FakeDevice, mode: IommuMode | str) -> None:
    with nothing_left():
        with vfio_user.open(ADDRESS, mode=mode) as pci:
            assert pci.name == ADDRESS
            assert pci.address_space.mode is IommuMode.parse(mode)
            assert open_devices() == (pci.vdev,)
        assert pci.address_space.closed, "it was made for this device"
        pci.close()


def test_short_spelling_and_address_object(device: FakeDevice) -> None:
    with vfio_user.open(" 01:00.0 ", mode="type1v2") as pci:
        address = pci.address
    with vfio_user.open(address, mode="type1v2") as pci:
        assert pci.name == ADDRESS


def test_opening_changes_nothing(device: FakeDevice) -> None:
    before = device.read(7, 0, 4096)
    with vfio_user.open(ADDRESS, mode="type1v2"):
        assert device.read(7, 0, 4096) == before
    assert device.read(7, 0, 4096) == before
    assert device.resets == 0
    assert device.set_irqs == []


def test_what_is_refused_before_anything_is_opened(kernel: FakeKernel, tree: FakeSysfs) -> None:
    tree.add(ADDRESS, driver="vfio-pci")
    with nothing_left(), AddressSpace("type1v2") as space:
        del kernel.asked[:]
        with pytest.raises(ArgumentError, match=r"no PCI function 0000:09:00\.0"):
            vfio_user.open("09:00.0")
        with pytest.raises(ArgumentError, match="not a PCI address"):
            vfio_user.open("edu")
        with pytest.raises(ArgumentError, match="either a mode or an address space"):
            vfio_user.open(ADDRESS, mode="type1", address_space=space)
        with pytest.raises(UnsupportedError, match="no IOMMU group"):
            vfio_user.open(ADDRESS, mode="type1v2")
        with pytest.raises(ArgumentError, match="no addresses were given"):
            vfio_user.open_all([])
        with pytest.raises(ArgumentError, match="takes a list"):
            vfio_user.open_all(ADDRESS)
        assert kernel.asked == []


def test_noiommu_only_by_keyword(device: FakeDevice, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PciFunction, "noiommu", True)
    with pytest.raises(UnsupportedError, match=rf"{ADDRESS} is in a noiommu group.*allow_noiommu=True"):
        vfio_user.open(ADDRESS)
    with pytest.raises(UnsupportedError, match="allow_noiommu=True"):
        vfio_user.open_all([ADDRESS])
    assert kernel.asked == []


def test_open_already(device: FakeDevice) -> None:
    with vfio_user.open(ADDRESS, mode="type1v2") as pci:
        for space in (None, pci.address_space):
            with nothing_left(), pytest.raises(BusyError, match=f"{ADDRESS} is open in this process already"):
                vfio_user.open(ADDRESS, mode="auto" if space else "type1v2", address_space=space)
        assert pci.config.vendor_id == 0x1234


def test_shared_space_outlives_its_devices(three: list[str]) -> None:
    with nothing_left(), AddressSpace("type1v2") as space:
        for _ in range(2):
            with vfio_user.open(three[0], address_space=space), vfio_user.open(three[2], address_space=space):
                pass
            assert not space.closed


def test_several_at_once(three: list[str], kernel: FakeKernel) -> None:
    with nothing_left():
        with vfio_user.open_all(three, mode="type1v2") as devices:
            assert [each.name for each in devices] == three
            assert {id(each.address_space) for each in devices} == {id(devices.address_space)}
            assert sorted(each.name for each in open_devices()) == three
        assert devices.address_space.closed
        devices.close()
        del devices


def test_several_with_a_token(three: list[str], kernel: FakeKernel) -> None:
    kernel.tokens = dict.fromkeys(three, TOKEN)
    with nothing_left(), vfio_user.open_all(three, mode="type1v2", vf_token=TOKEN) as devices:
        assert [each.name for each in devices] == three
        del devices
    kernel.tokens = {SECOND: TOKEN, THIRD: OTHER}
    for tokens in (TOKEN, {SECOND: TOKEN}, {SECOND: TOKEN, THIRD: TOKEN}):
        with nothing_left(), pytest.raises(VfioIoctlError) as caught:
            vfio_user.open_all(three, mode="type1v2", vf_token=tokens)
        assert caught.value.errno in (errno.EACCES, errno.EINVAL)
    with vfio_user.open_all(three, mode="type1v2", vf_token={"01:00.1": TOKEN, THIRD: OTHER}):
        pass
    with vfio_user.open_all(
        three, mode="type1v2", vf_token={PciAddress.parse(SECOND): TOKEN, PciAddress.parse(THIRD): OTHER}
    ):
        pass


def test_tokens_that_are_for_nobody(three: list[str], kernel: FakeKernel) -> None:
    with nothing_left(), pytest.raises(ArgumentError, match=f"{THIRD}, which is not among the devices to open"):
        vfio_user.open_all(three[:2], mode="type1v2", vf_token={THIRD: TOKEN})
    with nothing_left(), pytest.raises(VfioIoctlError, match=f"{ADDRESS}.*It takes no token"):
        vfio_user.open_all(three[:1], mode="type1v2", vf_token=TOKEN)


@pytest.mark.parametrize("failing", [SECOND, THIRD])
def test_all_or_none(three: list[str], kernel: FakeKernel, tree: FakeSysfs, failing: str) -> None:
    device = kernel.devices.pop(failing)
    tree.bind(failing, "edu")
    with nothing_left(), pytest.raises(UnsupportedError, match=f"{failing} is not bound to vfio-pci"):
        vfio_user.open_all(three, mode="type1v2")
    assert open_devices() == ()
    kernel.devices[failing] = device


def test_devices_are_opened_at_the_same_time(three: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """No device is opened before all three are being opened."""
    meet = threading.Barrier(3, timeout=20)
    original = Group.open_device

    def slow(group: Group, name: str, **options: str | None) -> OwnedFd:
        meet.wait()
        return original(group, name, **options)

    monkeypatch.setattr(Group, "open_device", slow)
    with nothing_left(), vfio_user.open_all(three, mode="type1v2") as devices:
        assert [each.name for each in devices] == three
        assert sorted(group.number for group in devices.address_space.backend.groups) == [7, 8]  # type: ignore[attr-defined]


def test_an_interrupted_opening_leaves_nothing(three: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    original = Group.open_device

    def interrupted(group: Group, name: str, **options: str | None) -> OwnedFd:
        if name == three[1]:
            raise KeyboardInterrupt
        return original(group, name, **options)

    with nothing_left():
        with monkeypatch.context() as patch:
            patch.setattr(Group, "open_device", interrupted)
            with pytest.raises(KeyboardInterrupt):
                vfio_user.open_all(three, mode="type1v2")
        assert open_devices() == ()
        with vfio_user.open_all(three, mode="type1v2"):
            pass


def test_same_device_twice(three: list[str]) -> None:
    with nothing_left(), pytest.raises(ArgumentError, match=f"{ADDRESS} is given 2 times"):
        vfio_user.open_all([ADDRESS, SECOND, ADDRESS], mode="type1v2")
    assert open_devices() == ()


def test_group_that_is_not_viable(three: list[str], kernel: FakeKernel, tree: FakeSysfs) -> None:
    tree.bind(SECOND, "nvme")
    kernel.viable = False
    with nothing_left(), pytest.raises(NotViableError, match=rf"{SECOND} \(driver nvme\)"):
        vfio_user.open(ADDRESS, mode="type1v2")


def test_close_tries_every_device_and_the_space(three: list[str], kernel: FakeKernel) -> None:
    def stay(timeout: float = 10.0) -> None:
        raise DeadlineError("somebody is in")

    with nothing_left():
        devices = vfio_user.open_all(three, mode="type1v2")
        buffer = devices[0].dma_alloc(4096)
        kernel.short = 4096
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(devices[1], "close", stay)
            with pytest.raises(ExceptionGroup, match="some devices could not be closed") as caught:
                devices.close()
        assert [type(each) for each in caught.value.exceptions] == [DeadlineError, VfioError]
        assert [each.closed for each in devices] == [True, False, True]
        devices[1].close()
        assert buffer.closed, "with the last device its address space ended"
        del devices, buffer


def test_variant_table(device: FakeDevice) -> None:
    ops = dataclasses.replace(vfio_user.PCI_OPS, name="variant")
    with vfio_user.open(ADDRESS, mode="type1v2", ops=ops) as pci:
        assert pci.vdev.ops is ops

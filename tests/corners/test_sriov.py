"""SR-IOV: virtual functions made through a PF on vfio-pci, and the token that their users need."""

from __future__ import annotations

import errno
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import vfio_user
from tests.guest.leaks import nothing_left
from vfio_user import PciFunction, VirtualFunctions, create_vfs
from vfio_user.errors import ArgumentError, BusyError, InUseError, UnsupportedError, VfioIoctlError
from vfio_user.kernel.topology import physical_function, virtual_functions
from vfio_user.kernel.uapi import DeviceFeature, FeatureOperation
from vfio_user.testing import GuestDevice

Find = Callable[[str], GuestDevice]
SWITCH = Path("/sys/module/vfio_pci/parameters/enable_sriov")
TOKEN, OTHER = str(uuid.uuid4()), str(uuid.uuid4())

USER = """
import sys, vfio_user
address, mode, token = sys.argv[1:]
with vfio_user.open(address, mode=mode, vf_token=token) as vf:
    print(f"{vf.config.status:04x} open", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def pf(vfio_device: Find) -> Iterator[str]:
    SWITCH.write_text("1")
    yield vfio_device("nvme").address
    SWITCH.write_text("0")


@pytest.fixture
def vfs(pf: str) -> Iterator[VirtualFunctions]:
    with nothing_left(), create_vfs(pf, 1) as vfs:
        yield vfs


@pytest.fixture
def vf(vfs: VirtualFunctions) -> str:
    return str(vfs.addresses[0])


def there(pf: str) -> int:
    return len(virtual_functions(PciFunction(vfio_user.PciAddress.parse(pf))))


def refuse(vf: str, mode: str, token: str | None) -> None:
    with pytest.raises(VfioIoctlError, match="vf_token=UUID") as caught:
        vfio_user.open(vf, mode=mode, vf_token=token)
    assert caught.value.errno == errno.EACCES


# -- making them


def test_made_and_unmade(pf: str) -> None:
    function = PciFunction(vfio_user.PciAddress.parse(pf))
    assert function.total_vfs == 4
    assert there(pf) == 0
    with nothing_left(), create_vfs(pf, 3) as vfs:
        assert repr(vfs) == f"<VirtualFunctions 3 of {pf}>"
        assert virtual_functions(function) == vfs.functions
        assert len(set(vfs.addresses)) == 3
        for each in vfs.functions:
            assert (each.driver, each.is_virtual, physical_function(each)) == ("vfio-pci", True, function)
        with pytest.raises(BusyError, match="has 3 virtual functions already"):
            create_vfs(pf, 2)
    assert there(pf) == 0
    vfs.destroy()
    assert not any(each.exists() for each in vfs.functions)


def test_what_can_not_be_made_is_named(pf: str, vfio_device: Find) -> None:
    with pytest.raises(UnsupportedError, match="no SR-IOV capability"):
        create_vfs(vfio_device("edu").address, 1)
    for count in (0, -1, 5):
        with pytest.raises(ArgumentError, match="it can have 1 to 4"):
            create_vfs(pf, count)
    SWITCH.write_text("0")
    with pytest.raises(UnsupportedError, match=r"vfio_pci\.enable_sriov=1"):
        create_vfs(pf, 1)
    assert there(pf) == 0


def test_open_ones_are_not_unmade(vfs: VirtualFunctions, vf: str, pf: str) -> None:
    with vfio_user.open(pf, vf_token=TOKEN), vfio_user.open(vf, vf_token=TOKEN):
        with pytest.raises(InUseError, match=rf"\(this one\) has {vf} open: close it first"):
            vfs.destroy()
        assert vfs.functions[0].exists()


# -- tokens


def test_token_is_set_on_physical_functions_only(vfs: VirtualFunctions, vf: str, pf: str, vfio_device: Find) -> None:
    with vfio_user.open(vfio_device("edu").address) as edu, pytest.raises(UnsupportedError, match="PCI_VF_TOKEN"):
        edu.set_vf_token(TOKEN)
    with vfio_user.open(pf) as device:
        assert device.vdev.features.operations(DeviceFeature.PCI_VF_TOKEN) == FeatureOperation.SET
        with pytest.raises(ArgumentError, match="'secret' is not a UUID"):
            device.set_vf_token("secret")
        device.set_vf_token(uuid.UUID(TOKEN))
        with vfio_user.open(vf, vf_token=TOKEN) as virtual, pytest.raises(UnsupportedError, match="PCI_VF_TOKEN"):
            virtual.set_vf_token(OTHER)


@pytest.mark.parametrize("early", [False, True], ids=["pf-open", "pf-closed"])
def test_who_knows_the_token_gets_in(vf: str, pf: str, iommu_mode: str, early: bool) -> None:
    with vfio_user.open(pf, mode=iommu_mode, vf_token=TOKEN) as device:
        if early:
            device.close()
        for token in (OTHER, None):
            refuse(vf, iommu_mode, token)
        with vfio_user.open(vf, mode=iommu_mode, vf_token=TOKEN) as virtual:
            assert virtual.config.size >= 256


def test_last_token_counts(vf: str, pf: str, iommu_mode: str) -> None:
    with vfio_user.open(pf, mode=iommu_mode, vf_token=TOKEN) as device:
        device.set_vf_token(OTHER)
        refuse(vf, iommu_mode, TOKEN)
        with pytest.raises(ArgumentError, match="is not a UUID"):
            vfio_user.open(vf, mode=iommu_mode, vf_token="secret")
        vfio_user.open(vf, mode=iommu_mode, vf_token=OTHER).close()


def test_several_are_opened_with_one_token_or_each_with_its_own(pf: str, vfio_device: Find, iommu_mode: str) -> None:
    edu = vfio_device("edu").address
    with nothing_left(), create_vfs(pf, 2) as vfs, vfio_user.open(pf, mode=iommu_mode, vf_token=TOKEN):
        first, second = addresses = [str(each) for each in vfs.addresses]
        with vfio_user.open_all(addresses, mode=iommu_mode, vf_token=TOKEN) as devices:
            assert [each.name for each in devices] == addresses
        with vfio_user.open_all([edu, *addresses], mode=iommu_mode, vf_token=dict.fromkeys(addresses, TOKEN)) as all_:
            assert len(all_) == 3
        with pytest.raises(VfioIoctlError, match="vf_token=UUID"):
            vfio_user.open_all(addresses, mode=iommu_mode, vf_token={first: TOKEN, second: OTHER})
        with pytest.raises(VfioIoctlError, match=f"{edu}.*token") as caught:
            vfio_user.open_all([edu, *addresses], mode=iommu_mode, vf_token=TOKEN)
        assert caught.value.errno == errno.EINVAL
        del devices, all_


def test_physical_function_is_opened_with_the_token_while_a_virtual_one_is_in_use(
    vf: str, pf: str, iommu_mode: str
) -> None:
    with vfio_user.open(pf, mode=iommu_mode, vf_token=TOKEN):
        virtual = vfio_user.open(vf, mode=iommu_mode, vf_token=TOKEN)
    with virtual:
        refuse(pf, iommu_mode, OTHER)
        refuse(pf, iommu_mode, None)
        vfio_user.open(pf, mode=iommu_mode, vf_token=TOKEN).close()


def test_physical_and_virtual_function_in_different_processes(
    vfs: VirtualFunctions, vf: str, pf: str, iommu_mode: str
) -> None:
    with vfio_user.open(pf, mode=iommu_mode) as device:
        device.set_vf_token(TOKEN)
        command = [sys.executable, "-c", USER, vf, iommu_mode, TOKEN]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout is not None
            assert other.stdout.readline().endswith(" open\n")
            with pytest.raises(InUseError, match=f"process {other.pid} .* has {vf} open"):
                vfs.destroy()
            assert device.bar(0).read32(8) != 0xFFFF_FFFF
            other.communicate("", timeout=60)
        assert other.returncode == 0
        wrong = subprocess.run(
            [*command[:-1], OTHER], input="", capture_output=True, text=True, timeout=120, check=False
        )
        assert wrong.returncode == 1
        assert "vf_token=UUID" in wrong.stderr

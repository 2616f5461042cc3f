"""Hot resets of devices that were opened by their own nodes: the iommufd says what is ours, and no groups are named."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Sequence

import pytest

import vfio_user
from tests.guest.leaks import nothing_left
from tests.guest.reset_helpers import Recorder, acting, registers
from vfio_user import AddressSpace, PciDevice, testing
from vfio_user.drivers.edu import IRQ_ACK, IRQ_RAISE
from vfio_user.errors import NotOwnedError, VfioIoctlError
from vfio_user.pci.hot_reset_info import hot_reset, hot_reset_info

ID = 0x010000ED
MODE = "iommufd"

HOLDER = """
import sys, vfio_user
with vfio_user.open(sys.argv[1], mode="iommufd"):
    print("open", flush=True)
    sys.stdin.read()
"""


def one_group() -> list[str]:
    """Two functions of a slot that the IOMMU can't tell apart."""
    return [each.address for each in testing.devices("edu")[1:3]]


def two_groups() -> list[str]:
    """Two functions of a slot, each in a group of its own."""
    return [each.address for each in testing.devices("igb")]


def verdicts(pci: PciDevice) -> dict[str, str]:
    return {str(each.address): each.verdict for each in pci.device_set.plan().affected}


def require_not_owned(pci: PciDevice, sibling: str) -> None:
    """The reset is refused by name before anybody is told, and the device works on."""
    calls: list[str] = []
    Recorder(pci, calls)
    before = registers(pci)
    plan = pci.device_set.plan()
    assert plan.by_dev_id
    assert not plan.possible
    assert verdicts(pci) == {pci.name: "open", sibling: "not ours"}
    assert plan.advice == (f"Open {sibling} with the same address space.",)
    with pytest.raises(NotOwnedError, match=rf"{pci.name} also resets {sibling}.*same address space") as caught:
        pci.device_set.hot_reset()
    assert caught.value.addresses == (sibling,)
    assert calls == []
    assert registers(pci) == before
    assert pci.bar(0).read32(8) != 0xFFFFFFFF
    # What the plan says is what the kernel says.
    with pytest.raises(VfioIoctlError) as refused:
        hot_reset(pci.vdev.fileno(), [], pci.name)
    assert refused.value.errno == errno.EINVAL
    pci.driver = None


def test_two_groups_are_reset_without_naming_any() -> None:
    named: list[list[int]] = []

    def act(pci: PciDevice, group_fds: Sequence[int]) -> None:
        named.append(list(group_fds))
        vfio_user.PCI_OPS.reset_set(pci.vdev, group_fds)

    first, second = two_groups()
    with (
        nothing_left(),
        AddressSpace(MODE) as space,
        vfio_user.open(first, address_space=space, ops=acting(reset_set=act)) as one,
        vfio_user.open(second, address_space=space) as two,
    ):
        plan = one.device_set.plan()
        assert (plan.possible, plan.by_dev_id, plan.groups) == (True, True, ())
        ids = [each.dev_id for each in plan.affected]
        assert None not in ids
        assert len(set(ids)) == 2
        assert verdicts(two) == {first: "open", second: "open"}
        before = [registers(pci) for pci in (one, two)]
        assert two.device_set.hot_reset().devices == (first, second)
        assert named == [[]]
        assert [registers(pci) for pci in (one, two)] == before
        told = plan.to_json()
        assert told["ownership"] == "iommufd"
        assert "hot reset of" in str(plan)
        # The kernel takes no groups in this form.
        eventfd = os.eventfd(0)
        with pytest.raises(VfioIoctlError) as refused:
            hot_reset(one.vdev.fileno(), [eventfd], one.name)
        os.close(eventfd)
        assert refused.value.errno == errno.EINVAL


def test_a_sibling_of_another_group_that_is_not_open() -> None:
    first, second = two_groups()
    with nothing_left(), vfio_user.open(first, mode=MODE) as pci:
        require_not_owned(pci, second)


def test_a_sibling_in_another_iommufd_of_this_process() -> None:
    first, second = two_groups()
    with nothing_left(), vfio_user.open(first, mode=MODE) as pci, vfio_user.open(second, mode=MODE) as other:
        assert other.device_set is pci.device_set
        require_not_owned(pci, second)
        assert other.bar(0).read32(8) != 0xFFFFFFFF


def test_a_sibling_of_another_process() -> None:
    first, second = two_groups()
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, second], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        with nothing_left(), vfio_user.open(first, mode=MODE) as pci:
            require_not_owned(pci, second)
        holder.communicate(timeout=60)
    assert holder.returncode == 0


def test_a_sibling_of_the_same_group_is_ours_without_being_open() -> None:
    first, second = one_group()
    with nothing_left(), vfio_user.open(first, mode=MODE) as pci:
        info = hot_reset_info(pci.vdev.fileno(), pci.name)
        assert (info.by_dev_id, info.groups) == (True, ())
        assert verdicts(pci) == {first: "open", second: "ours, not open"}
        assert pci.device_set.hot_reset().devices == (first,)
        assert pci.bar(0).read32(0) == ID


def test_both_of_one_group_come_back_with_their_interrupts() -> None:
    calls: list[str] = []
    with nothing_left(), vfio_user.open_all(one_group(), mode=MODE) as (first, second):
        views = [pci.bar(0).view().cast("I") for pci in (first, second)]
        with first.irqs.msi.enable(1) as (one,), second.irqs.msi.enable(1) as (two,):
            for pci in (first, second):
                Recorder(pci, calls)
                pci.set_master(True)
            assert second.device_set.hot_reset().devices == (first.name, second.name)
            assert [call.partition(" ")[0] for call in calls] == ["prepare", "prepare", "done", "done"]
            assert [int(view[0]) for view in views] == [ID] * 2
            for pci, vector in ((first, one), (second, two)):
                pci.bar(0).write32(IRQ_RAISE, 1)
                assert vector.wait(2.0) == 1
                pci.bar(0).write32(IRQ_ACK, 1)
                pci.driver = None
        del views

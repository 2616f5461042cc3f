"""Registers by name, on real devices: through VFIO, and beside the process that drives one."""

from __future__ import annotations

import contextlib
import io
import json

import pytest

import vfio_user
from tests.guest.driven import driven_edu
from tests.guest.leaks import nothing_left
from vfio_user import testing
from vfio_user.cli import main
from vfio_user.drivers.edu import Edu, EduRegisters
from vfio_user.drivers.nvme import NvmeController
from vfio_user.drivers.nvme.registers import NvmeRegisters
from vfio_user.errors import DeadlineError, MemoryDisabledError, UnsupportedError, VfioError, VfioOSError
from vfio_user.inventory import read_registers


def test_the_map_and_the_raw_accessors_see_the_same() -> None:
    with nothing_left(), vfio_user.open(testing.device("nvme").address) as pci:
        bar, regs = pci.bar(0), NvmeRegisters(pci.bar(0))
        for register in regs.bound():
            raw = bar.read64 if register.register.width == 64 else bar.read32
            assert register.read() == raw(register.offset)
        assert regs.cap.get().mqes == bar.read64(0) & 0xFFFF
        with NvmeController(pci) as controller:
            assert regs.csts.get().rdy
            assert regs.cc.get().en == 1
            assert regs.aqa.get().asqs == regs.aqa.get().acqs > 0
            assert regs.vs.get().mjr == controller.version.major
        assert not regs.csts.get().rdy


def test_waiting_for_a_field() -> None:
    with vfio_user.open(testing.device("edu").address) as pci:
        regs = EduRegisters(pci.bar(0))
        regs.factorial.write(6)
        assert not regs.status.wait(10.0, computing=0).computing
        assert regs.factorial.read() == 720
        with pytest.raises(DeadlineError):
            regs.status.wait(0.01, computing=1)


def test_registers_beside_a_driver() -> None:
    """Where the kernel allows it; else it is refused with a reason, and nothing is disturbed either way."""
    with driven_edu(monitor=False) as driven:
        assert driven.factorial(6) == 720
        refusal, found = "", {}
        try:
            (laid,) = read_registers(driven.address, live=True)
            found = {each.register.name: each.value for each in laid.readings}
        except VfioOSError as error:
            refusal = str(error)
        print(refusal or found)
        assert "iomem=relaxed" in refusal or (found["identification"], found["factorial"]) == (0x010000ED, 720)
        assert driven.factorial(7) == 5040


def test_live_registers_of_a_device_that_sleeps_are_refused() -> None:
    with pytest.raises(VfioError) as caught:
        read_registers(testing.device("nvme").address, live=True)
    assert isinstance(caught.value, MemoryDisabledError), "nobody has it open, so it sleeps or does not decode"


def test_the_command() -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["regs", testing.device("edu").address, "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(out.getvalue())}
    assert rows["identification"]["fields"] == {"magic": 0xED, "minor": 0, "major": 1}
    assert rows["irq_ack"]["note"] == "write-only"
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        assert main(["regs", testing.device("nvme").address]) == 0
    print(text.getvalue())
    assert "mqes=2047" in text.getvalue()
    assert main(["regs", testing.device("ivshmem").address]) == 2, "there is no map for it"
    with pytest.raises(UnsupportedError, match="MODULE:CLASS"):
        read_registers(testing.device("ivshmem").address)
    with vfio_user.open(testing.device("edu").address) as pci, Edu(pci) as edu:
        assert edu.factorial(5) == 120


def test_registers_where_a_capability_says() -> None:
    (common,) = read_registers(testing.device("virtio-net").address)
    found = {each.register.name: each.value for each in common.readings}
    assert common.name == "CommonRegisters"
    assert found["num_queues"] == 3
    assert found["device_status"] == 0, "nobody drives it"
    (igb,) = read_registers(testing.device("igb").address)
    values = {each.register.name: each.value for each in igb.readings}
    assert values["icr"] is None, "reading it clears it"
    assert values["ral0"]

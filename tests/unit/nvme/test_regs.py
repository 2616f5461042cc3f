from __future__ import annotations

import pytest

from vfio_user.drivers.nvme import regs
from vfio_user.errors import BoundsError


def test_capabilities_of_a_real_controller() -> None:
    # CAP of QEMU's controller: MQES 2047, CQR, TO 15, CSS NVM + all sets, MPSMAX 4.
    cap = regs.Capabilities.from_int(0x0040_0000_0000_0000 | 0x41 << 37 | 15 << 24 | 1 << 16 | 0x7FF)
    assert cap.max_queue_entries == 2048
    assert cap.contiguous_queues_required
    assert cap.timeout == 7.5
    assert cap.doorbell_stride == 4
    assert not cap.subsystem_reset
    assert (cap.min_page_size, cap.max_page_size) == (4096, 65536)
    assert cap.command_set_selection == 0b110
    assert cap.has_nvm_command_set


@pytest.mark.parametrize(
    ("command_sets", "selection", "nvm"),
    [(0b1, 0, True), (0b1000000, 0b110, True), (0b10000000, 0b111, False), (0, None, False)],
)
def test_command_set_selection(command_sets: int, selection: int | None, nvm: bool) -> None:
    cap = regs.Capabilities.from_int(command_sets << 37)
    assert cap.command_set_selection == selection
    assert cap.has_nvm_command_set is nvm


def test_status_all_ones_is_gone_and_nothing_else() -> None:
    status = regs.ControllerStatus.from_int(0xFFFF_FFFF)
    assert {name for name in status.__slots__ if getattr(status, name)} == {"gone"}


@pytest.mark.parametrize(
    ("value", "true_fields"),
    [
        (0b1, {"ready"}),
        (0b10, {"fatal"}),
        (0b0101, {"ready", "shutdown_in_progress"}),
        (0b1001, {"ready", "shutdown_complete"}),
        (1 << 5, {"processing_paused"}),
    ],
)
def test_status_bits(value: int, true_fields: set[str]) -> None:
    status = regs.ControllerStatus.from_int(value)
    assert {name for name in status.__slots__ if getattr(status, name)} == true_fields


def test_versions_compare_and_print() -> None:
    assert regs.Version.from_int(0x0001_0400) == regs.Version(1, 4)
    assert regs.Version(1, 3) < regs.Version(1, 3, 1) < regs.Version(2, 0)
    assert str(regs.Version(2, 0, 1)) == "2.0.1"


def test_configuration_enables_with_entry_sizes_and_page_size() -> None:
    assert regs.configuration(4096, 0) == 0x0046_0001
    assert regs.configuration(16384, 0b110) == 0x0046_0001 | 2 << 7 | 0b110 << 4


def test_admin_queue_attributes() -> None:
    assert regs.admin_queue_attributes(32) == 0x001F_001F
    for entries in (1, 4097):
        with pytest.raises(BoundsError, match="2 to 4096"):
            regs.admin_queue_attributes(entries)


def test_doorbells_alternate_and_follow_the_stride() -> None:
    assert regs.doorbell_offset(0, completion=False, stride=4) == 0x1000
    assert regs.doorbell_offset(0, completion=True, stride=4) == 0x1004
    assert regs.doorbell_offset(3, completion=False, stride=4) == 0x1018
    assert regs.doorbell_offset(3, completion=True, stride=16) == 0x1070

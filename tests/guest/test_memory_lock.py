"""The memory lock on real devices: decoding off, D3, function-level reset by configuration, close."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import vfio_user
from tests.guest.leaks import census, nothing_left
from tests.guest.reset_helpers import Find, Recorder, busy_reader, registers
from vfio_user import DeviceHealth, PciDevice
from vfio_user.errors import (
    BusyError,
    ClosedError,
    LockOrderError,
    MemoryDisabledError,
    MemoryLockBusyError,
    VfioOSError,
    ZappedError,
)
from vfio_user.pci import CapabilityId, Command

ID = 0x010000ED
ONES = 0xFFFFFFFF


def health(pci: PciDevice) -> DeviceHealth:
    """A call, so that the type checker knows that it changes."""
    return pci.vdev.health


@pytest.fixture
def pci(vfio_device: Find) -> Iterator[PciDevice]:
    with nothing_left(), vfio_user.open(vfio_device("edu").address) as pci:
        yield pci


@pytest.fixture
def nvme(vfio_device: Find) -> Iterator[PciDevice]:
    with nothing_left(), vfio_user.open(vfio_device("nvme").address) as pci:
        yield pci


def test_a_section_covers_several_accesses_and_nests(pci: PciDevice) -> None:
    bar = pci.bar(0)
    with bar.access() as mmio, bar.access():
        mmio.write32(4, 5)
        assert mmio.read32(4) == 5 ^ ONES
        with pytest.raises(LockOrderError):
            pci.config.set_command(disable=int(Command.MEMORY))
    assert pci.config.command & Command.MEMORY


@pytest.mark.parametrize("width", [1, 2, 4])
def test_decoding_off_and_on(pci: PciDevice, width: int) -> None:
    bar = pci.bar(0)
    view = bar.view().cast("I")
    assert bar.mmio is not None
    address = bar.mmio.address
    config = pci.config
    write = {1: config.write8, 2: config.write16, 4: config.write32}[width]
    command = int(config.command)
    for _ in range(3):
        write(4, command & ~Command.MEMORY & (1 << 8 * width) - 1)
        assert health(pci) is DeviceHealth.MEMORY_OFF
        with pytest.raises(MemoryDisabledError, match="decoding is off"):
            bar.read32(0)
        with pytest.raises(MemoryDisabledError), bar.access():
            raise AssertionError("a section of memory that is away")
        with pytest.raises(VfioOSError):
            bar.pread(0, 4)
        assert (view[0], view[100]) == (ONES, ONES)
        view[1] = 7  # goes nowhere
        with pytest.raises(MemoryDisabledError, match=r"Command\.MEMORY"):
            pci.revive()
        write(4, command & (1 << 8 * width) - 1)
        assert health(pci) is DeviceHealth.OK
        assert (view[0], bar.read32(0), bar.mmio.address) == (ID, ID, address)
    del view


def test_other_bits_of_command_leave_the_memory_alone(pci: PciDevice) -> None:
    with busy_reader(pci.bar(0)):  # nobody waits for the memory lock
        pci.set_master(True)
        pci.config.write8(0x3C, 9)
        pci.set_master(False)
    assert pci.vdev.window is not None
    assert pci.vdev.window.generation == 0


def test_a_reader_holds_up_who_switches_decoding_off(pci: PciDevice) -> None:
    with busy_reader(pci.bar(0)) as tid, pytest.raises(MemoryLockBusyError, match=str(tid)):
        pci.config.set_command(disable=int(Command.MEMORY))
    assert pci.config.command & Command.MEMORY
    assert pci.bar(0).read32(0) == ID


def test_decoding_off_under_readers(pci: PciDevice) -> None:
    """Whatever a reader gets is right, or all-ones, or a named error."""
    bar = pci.bar(0)
    views = [bar.view().cast("I")]
    stop = threading.Event()
    seen: dict[str, set[object]] = {"guarded": set(), "raw": set(), "block": set()}
    wrong: list[BaseException] = []

    def look(kind: str) -> None:
        while not stop.is_set():
            try:
                if kind == "guarded":
                    seen[kind].add(bar.read32(0))
                elif kind == "raw":
                    seen[kind].add(int(views[0][0]))
                else:
                    assert bar.mmio is not None
                    seen[kind].add(bar.mmio.read_block32(0, 1))
            except MemoryDisabledError:
                seen[kind].add("disabled")
            except BaseException as error:
                wrong.append(error)
                return

    threads = [threading.Thread(target=look, args=(kind,)) for kind in seen]
    for thread in threads:
        thread.start()
    for _ in range(20):
        pci.config.set_command(disable=int(Command.MEMORY))
        time.sleep(0.01)
        pci.config.set_command(enable=int(Command.MEMORY))
        time.sleep(0.01)
    stop.set()
    for thread in threads:
        thread.join(10)
    assert wrong == []
    assert seen["guarded"] == {ID, "disabled"}
    assert seen["block"] == {ID.to_bytes(4, "little"), "disabled"}
    assert seen["raw"] <= {ID, ONES}
    assert (views.pop()[0], health(pci)) == (ID, DeviceHealth.OK)


def test_low_power_state(nvme: PciDevice) -> None:
    bar, config = nvme.bar(0), nvme.config
    version = bar.read32(8)
    view = bar.view().cast("I")
    power = config.find(CapabilityId.POWER_MANAGEMENT)
    assert power is not None
    for _ in range(2):
        config.write16(power + 4, config.read16(power + 4) | 3)
        assert health(nvme) is DeviceHealth.MEMORY_OFF
        with pytest.raises(MemoryDisabledError, match="low-power"):
            bar.read32(8)
        assert view[2] == ONES
        config.set_command(enable=int(Command.MEMORY))
        assert health(nvme) is DeviceHealth.MEMORY_OFF, "decoding alone does not wake it"
        config.write16(power + 4, config.read16(power + 4) & ~3)
        assert health(nvme) is DeviceHealth.OK
        assert (view[2], bar.read32(8)) == (version, version)
    del view


def test_a_device_in_low_power_is_reset_and_awake_afterwards(nvme: PciDevice) -> None:
    config = nvme.config
    power = config.find(CapabilityId.POWER_MANAGEMENT)
    assert power is not None
    version = nvme.bar(0).read32(8)
    for reset in (nvme.reset, nvme.device_set.hot_reset):
        config.write16(power + 4, config.read16(power + 4) | 3)
        reset()
        assert config.read16(power + 4) & 3 == 0
        assert nvme.bar(0).read32(8) == version


def test_a_device_with_decoding_off_stays_so_over_a_reset(pci: PciDevice) -> None:
    pci.config.set_command(disable=int(Command.MEMORY))
    before = registers(pci)
    pci.reset()
    assert registers(pci) == before
    assert health(pci) is DeviceHealth.MEMORY_OFF
    with pytest.raises(MemoryDisabledError):
        pci.bar(0).read32(0)
    pci.config.set_command(enable=int(Command.MEMORY))
    assert pci.bar(0).read32(0) == ID


def test_function_level_reset_by_configuration_takes_the_same_road(nvme: PciDevice) -> None:
    calls: list[str] = []
    Recorder(nvme, calls)
    express = nvme.config.find(CapabilityId.EXPRESS)
    assert express is not None
    version = nvme.bar(0).read32(8)
    for offset, value in ((0x24, 0x001F001F), (0x28, 0x1000), (0x30, 0x2000), (0x14, 0x00460001)):
        nvme.bar(0).write32(offset, value)  # queues that nobody uses, and CC.EN
    nvme.bar(0).poll_until(0x1C, mask=1, equals=1, timeout=5)
    nvme.set_master(True)
    before = registers(nvme)
    nvme.config.write16(express + 8, nvme.config.read16(express + 8) | 1 << 15)
    assert calls == [f"prepare {nvme.name}", f"done {nvme.name}"]
    assert registers(nvme) == before
    assert (nvme.bar(0).read32(8), nvme.bar(0).read32(0x14), nvme.bar(0).read32(0x1C)) == (version, 0, 0)
    nvme.driver = None


def test_what_the_kernel_refuses_is_contained(pci: PciDevice, vfio_device: Find) -> None:
    """Somebody else switches decoding off: the kernel answers with SIGBUS, and nobody dies of it."""
    bar = pci.bar(0)
    view = bar.view().cast("I")
    before = int(pci.config.command)
    start, plain = pci.guard.start, vfio_user.device.CORE_OPS.write
    plain(pci.vdev, start + 4, (before & ~Command.MEMORY).to_bytes(2, "little"))
    assert view[0] == ONES
    assert health(pci) is DeviceHealth.REFUSED
    with pytest.raises(MemoryDisabledError, match="SIGBUS"):
        bar.read32(0)
    with pytest.raises(MemoryDisabledError, match="does not answer in memory space"):
        pci.revive()
    assert health(pci) is DeviceHealth.MEMORY_OFF
    plain(pci.vdev, start + 4, before.to_bytes(2, "little"))
    assert view[0] == ONES, "it comes back when it is asked to"
    pci.revive()
    assert (view[0], bar.read32(0), health(pci)) == (ID, ID, DeviceHealth.OK)
    # Refused to a guarded access, and cured by the write that switches it on.
    plain(pci.vdev, start + 4, (before & ~Command.MEMORY).to_bytes(2, "little"))
    with pytest.raises(MemoryDisabledError):
        bar.read32(0)
    pci.config.command = Command(before)
    assert (view[0], bar.read32(0)) == (ID, ID)
    del view


def test_waiting_for_memory_to_come_back(pci: PciDevice) -> None:
    pci.config.set_command(disable=int(Command.MEMORY))
    timer = threading.Timer(0.2, pci.config.set_command, kwargs={"enable": int(Command.MEMORY)})
    timer.start()
    with pci.bar(0).access(wait=5) as mmio:
        assert mmio.read32(0) == ID
    timer.join()


def test_configuration_waits_for_a_reset(pci: PciDevice) -> None:
    with pci.guard.alone():
        threads = []
        caught: list[BaseException] = []

        def switch() -> None:
            try:
                with pci.guard.alone(0.05):
                    pass
            except BusyError as error:
                caught.append(error)

        threads.append(threading.Thread(target=switch))
        threads[0].start()
        threads[0].join(5)
        assert len(caught) == 1


def test_closing_with_live_views(vfio_device: Find) -> None:
    address = vfio_device("edu").address
    mapped = census().device_mappings
    pci = vfio_user.open(address)
    bar = pci.bar(0)
    view = bar.view().cast("I")
    raw = bar.view(0, 4096)
    assert bar.mmio is not None
    place = bar.mmio.address
    pci.close()
    assert (view[0], view[-1], bytes(raw[:4])) == (ONES, ONES, b"\xff" * 4)
    view[1] = 5
    with pytest.raises(ClosedError):
        bar.read32(0)
    assert census().device_mappings == mapped
    # The device's file is closed: unbinding does not wait for anybody.
    folder = Path(f"/sys/bus/pci/devices/{address}")
    begin = time.monotonic()
    (folder / "driver" / "unbind").write_text(address)
    Path("/sys/bus/pci/drivers_probe").write_text(address)
    assert time.monotonic() - begin < 3
    with vfio_user.open(address) as again:
        assert again.bar(0).read32(0) == ID
        assert again.vdev.window is not None
        assert not again.vdev.window.address <= place < again.vdev.window.address + again.vdev.window.size
    assert view[0] == ONES
    del view
    raw.release()


def test_closing_waits_for_readers(vfio_device: Find) -> None:
    with vfio_user.open(vfio_device("edu").address) as pci:
        with busy_reader(pci.bar(0)) as tid:
            with pytest.raises(MemoryLockBusyError, match=str(tid)):
                pci.close(timeout=0.1)
            assert not pci.closed
            with pytest.raises((ClosedError, ZappedError)):
                pci.config.vendor_id  # noqa: B018
        pci.close()
        assert pci.closed

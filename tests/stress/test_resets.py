"""Resets in a loop, while threads use the devices in every way."""

from __future__ import annotations

import itertools
import random

import pytest

import vfio_user
from tests.guest.conftest import RESET_MODES
from tests.stress.crew import Crew
from tests.stress.workers import AWAY, ID, hire_for_registers, hire_for_work
from vfio_user import DeviceHealth, PciDevice, testing
from vfio_user.drivers.edu import Edu
from vfio_user.drivers.nvme import NvmeAbortedError, NvmeController, NvmeNotRunningError
from vfio_user.errors import VfioError
from vfio_user.pci import CapabilityId, Command


def works(pci: PciDevice) -> None:
    assert pci.vdev.health is DeviceHealth.OK
    assert pci.bar(0).read32(0) == ID


@pytest.mark.parametrize("mode", RESET_MODES)
def test_registers_interrupts_and_dma(crew: Crew, seconds: float, mode: str) -> None:
    with vfio_user.open(testing.device("edu").address, mode=mode) as pci, Edu(pci) as edu:
        hire_for_registers(crew, pci)
        hire_for_work(crew, edu)
        resets = crew.repeat(seconds, pci.device_set.hot_reset, pci.reset)
        crew.send_home()
        print(f"{resets} resets; {crew}")
        works(pci)
        assert edu.factorial(6) == 720


def test_both_functions_of_a_slot(crew: Crew, seconds: float) -> None:
    addresses = [each.address for each in testing.devices("edu")[1:3]]
    with vfio_user.open_all(addresses) as (first, second), Edu(first) as one, Edu(second):
        hire_for_registers(crew, first)
        hire_for_work(crew, one)
        hire_for_registers(crew, second)
        resets = crew.repeat(seconds, first.device_set.hot_reset, second.device_set.hot_reset)
        crew.send_home()
        print(f"{resets} resets; {crew}")
        works(first)
        works(second)


def test_memory_decoding_and_resets(crew: Crew, seconds: float) -> None:
    """Switched off and on under readers, with resets in between, from three threads."""
    with vfio_user.open(testing.device("edu").address) as pci:
        hire_for_registers(crew, pci)

        def switch() -> None:
            pci.config.set_command(disable=int(Command.MEMORY))
            pci.config.set_command(enable=int(Command.MEMORY))

        def master() -> None:
            pci.set_master(True)
            pci.set_master(False)

        crew.hire("switch", switch)
        crew.hire("master", master)
        resets = crew.repeat(seconds, pci.reset)
        crew.send_home()
        print(f"{resets} resets; {crew}")
        pci.config.set_command(enable=int(Command.MEMORY))
        works(pci)


def test_low_power(crew: Crew, seconds: float) -> None:
    with vfio_user.open(testing.device("nvme").address) as pci:
        bar = pci.bar(0)
        version = bar.read32(8)
        view = bar.view().cast("I")
        power = pci.config.find(CapabilityId.POWER_MANAGEMENT)
        assert power is not None

        def guarded() -> None:
            assert bar.read32(8) == version

        def raw() -> None:
            assert view[2] in (version, 0xFFFFFFFF)

        for number in range(4):
            crew.hire(f"guarded {number}", guarded, AWAY)
            crew.hire(f"raw {number}", raw)

        def sleep_and_wake() -> None:
            pci.config.write16(power + 4, pci.config.read16(power + 4) | 3)
            pci.config.write16(power + 4, pci.config.read16(power + 4) & ~3)
            with pci.low_power:
                pass

        turns = crew.repeat(seconds, sleep_and_wake)
        crew.send_home()
        print(f"asleep {turns} times; {crew}")
        assert (bar.read32(8), view[2]) == (version, version)
        view.release()


def test_nvme_data_stays_intact(crew: Crew, seconds: float) -> None:
    """Every command either succeeds with the right data, or says by name that a reset ended it."""
    blocks, workers = 8, 4
    with (
        vfio_user.open(testing.device("nvme").address) as pci,
        NvmeController(pci, io_queues=2) as controller,
    ):
        namespace = controller.namespaces[0]
        last: dict[int, set[bytes]] = {}

        def hire(worker: int) -> None:
            dice = random.Random(worker)

            def work() -> None:
                lba = (worker * 64 + dice.randrange(64)) * blocks
                data = dice.randbytes(blocks * 512)
                # Until the write is known to be done, the old data is as right as the new.
                before = last.get(lba) or {namespace.read(lba, blocks)}
                last[lba] = before | {data}
                namespace.write(lba, data)
                last[lba] = {data}
                found = namespace.read(lba, blocks)
                assert found == data, f"other data at block {lba}"

            crew.hire(f"nvme {worker}", work, (NvmeAbortedError, NvmeNotRunningError, *AWAY))

        for worker in range(workers):
            hire(worker)
        # Little at a time: a command needs longer than a reset leaves it.
        resets = crew.repeat(seconds, pci.device_set.hot_reset, pci.reset, controller.reset, busy=0.2)
        crew.send_home()
        print(f"{resets} resets; {crew}")
        for lba, possible in last.items():
            assert namespace.read(lba, blocks) in possible


def test_peer_to_peer(crew: Crew, seconds: float) -> None:
    """Transfers between two devices, while the one whose memory it is, is reset."""
    edu_address, memory_address = testing.device("edu").address, testing.device("ivshmem").address
    with (
        vfio_user.open_all([edu_address, memory_address]) as (pci, memory),
        Edu(pci) as edu,
        memory.bar(2).map_for(pci.address_space, iova_limit=Edu.IOVA_LIMIT) as mapping,
        edu.alloc() as buffer,
    ):
        window = memory.vdev.window
        assert window is not None
        numbers = itertools.count()

        def work() -> None:
            number = next(numbers)
            generation = window.generation
            text = b"%08d" % number
            buffer[:8] = text
            edu.copy_to_device(buffer[:8])
            edu.copy_from_device(mapping.part(number % 100 * 64, 8))
            with memory.bar(2).access():
                found = bytes(memory.bar(2).view(number % 100 * 64, 8))
                whole = window.generation == generation
            assert found == text or not whole, "the transfer went elsewhere, although nothing was reset"

        crew.hire("transfers", work, (VfioError,))
        crew.hire("reads", lambda: memory.bar(2).read32(0), AWAY)

        def reset() -> None:
            memory.reset()
            assert mapping.mapped

        resets = crew.repeat(seconds, reset)
        crew.send_home()
        print(f"{resets} resets; {crew}")

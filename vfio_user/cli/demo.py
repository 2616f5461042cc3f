"""``vfio-user demo``: show what the package does, on emulated devices in a guest."""

from __future__ import annotations

import argparse
import hashlib
import math
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import vfio_user
from vfio_user import testing
from vfio_user.cli.list import device_table
from vfio_user.drivers.edu import Edu
from vfio_user.drivers.nvme import Namespace, NvmeController
from vfio_user.errors import VfioError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["add"]

_DESCRIPTION = """\
Boot a guest with an edu device and an NVMe drive, both bound to vfio-pci, and drive them: discovery, a factorial by
interrupt, DMA both ways, identify, and a write and read-back of 64 MiB that is verified. Exits with 1 if anything
came out wrong.
"""
_DEVICES = ("edu", "nvme,size=256M")
_MIB = 1 << 20
_TRANSFER = 64 * _MIB
_STEP = 4 * _MIB


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this command's arguments."""
    parser = subparsers.add_parser("demo", help="see it work, in a guest", description=_DESCRIPTION)
    parser.add_argument("--kernel", default="stock", help="kernel of the guest; see vfio-user guest (default: stock)")
    parser.add_argument("--width", type=int, default=0, help=argparse.SUPPRESS)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    if testing.in_guest():
        return _show(_console(arguments.width))
    terminal = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    print("Booting a guest: QEMU, emulated, with an IOMMU. The first time fetches its kernel.", flush=True)
    result = testing.run(
        testing.Guest(kernel=arguments.kernel, devices=_DEVICES),
        [sys.executable, "-m", "vfio_user.cli", "demo", "--width", str(terminal)],
        timeout=300,
        stdout=sys.stdout.buffer,
        stderr=sys.stderr.buffer,
    )
    return result.returncode


def _console(width: int) -> Console:
    from rich.console import Console

    # What the guest prints goes through a file; the terminal is the caller's.
    return Console(width=width or 100, force_terminal=width > 0, highlight=False, legacy_windows=False)


def _show(out: Console) -> int:
    failures = 0
    for title, part in (("Discovery", _discovery), ("edu", _edu), ("NVMe", _nvme)):
        out.rule(f"[bold]{title}", align="left")
        try:
            part(out)
        except VfioError as error:
            failures += 1
            out.print(f"[bold red]failed[/]: {type(error).__name__}: {error}")
        out.print()
    out.print("[bold red]The demo failed." if failures else "[bold green]All of it came out right.")
    return 1 if failures else 0


def _discovery(out: Console) -> None:
    out.print(f"Linux {platform.release()}, Python {platform.python_version()}, devices bound to vfio-pci in green:\n")
    out.print(device_table(vfio_user.pci_functions()))


def _edu(out: Console) -> None:
    with vfio_user.open(testing.device("edu").address) as pci, Edu(pci) as edu:
        _check(out, f"{pci.name} opened ({pci.address_space.mode.value}), alive", edu.is_alive())
        for number in (5, 10, 12):
            with _timed() as elapsed:
                value = edu.factorial(number)
            right = value == math.factorial(number)
            _check(out, f"{number}! = {value}, by interrupt after {elapsed() * 1e3:.1f} ms", right)
        with edu.alloc() as buffer:
            message = b"hello from user space"
            there, back = buffer[: len(message)], buffer[2048 : 2048 + len(message)]
            there[:] = message
            edu.copy_to_device(there)
            edu.copy_from_device(back)
            _check(out, f"DMA to the device and back: {bytes(back).decode()!r}", bytes(back) == message)


def _nvme(out: Console) -> None:
    with vfio_user.open(testing.device("nvme").address) as pci, NvmeController(pci) as controller:
        identity = controller.identify
        out.print(f"  {identity.model.strip()}, serial {identity.serial.strip()}, firmware {identity.firmware.strip()}")
        for namespace in controller.namespaces:
            size = namespace.size // _MIB
            out.print(f"  namespace {namespace.nsid}: {size} MiB in blocks of {namespace.block_size} bytes")
        _round_trip(out, pci, controller.namespaces[0])
        health = controller.smart()
        _check(out, f"SMART: {health.data_units_written} data units written", not health.critical_warning)


def _round_trip(out: Console, pci: vfio_user.PciDevice, namespace: Namespace) -> None:
    """Write 64 MiB, read them back, compare the digests."""
    with pci.dma_alloc(_STEP) as buffer:
        written, read = hashlib.blake2b(), hashlib.blake2b()
        pattern = bytes(range(251)) * (_STEP // 251 + 2)

        def write(step: int) -> None:
            buffer[:] = pattern[step : step + _STEP]
            written.update(buffer.view)
            namespace.write_from(buffer, step * _STEP // namespace.block_size)

        def read_back(step: int) -> None:
            namespace.read_into(buffer, step * _STEP // namespace.block_size)
            read.update(buffer.view)

        rates = [_each_step(out, "write", write), _each_step(out, "read", read_back)]
        namespace.flush()
    right = written.digest() == read.digest()
    _check(out, f"64 MiB written at {rates[0]:.0f} MiB/s, read back at {rates[1]:.0f} MiB/s, and the same", right)


def _each_step(out: Console, verb: str, move: Callable[[int], None]) -> float:
    """Call ``move`` for every step under a progress bar; give the rate in MiB/s."""
    from rich.progress import BarColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn(f"  {verb:5}"), BarColumn(), TextColumn("{task.percentage:3.0f}%"), TransferSpeedColumn())
    with _timed() as elapsed, Progress(*columns, console=out) as progress:
        task = progress.add_task(verb, total=_TRANSFER)
        for step in range(_TRANSFER // _STEP):
            move(step)
            progress.advance(task, _STEP)
    return _TRANSFER / _MIB / elapsed()


def _check(out: Console, text: str, right: bool) -> None:
    if not right:
        raise VfioError(f"wrong: {text}")
    out.print(f"  [green]ok[/] {text}")


@contextmanager
def _timed() -> Iterator[Callable[[], float]]:
    start = time.perf_counter()
    end = [0.0]
    yield lambda: end[0] or time.perf_counter() - start
    end[0] = time.perf_counter() - start

"""What ``import vfio_user`` brings with it: nothing that a driver may never need."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import vfio_user

HEAVY = ("numpy", "asyncio", "ctypes", "qemu", "cffi", "rich", "pytest", "ioctl_opt", "multiprocessing", "socket")
#: What a program that opens a device, uses its registers, interrupts and DMA memory, and drives it, names.
CORE = ("open", "open_all", "PciDevice", "Region", "IrqVector", "AddressSpace", "DmaBuffer", "VfioError")


def loaded(code: str) -> set[str]:
    """Run code in a process of its own; give the modules that are there afterwards and were not before."""
    code = f"import sys; before = set(sys.modules); {code}; print(*(set(sys.modules) - before))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return set(result.stdout.split())


def test_the_face_brings_nothing_with_it() -> None:
    found = loaded("import vfio_user")
    assert {name for name in found if name.startswith("vfio_user")} == {"vfio_user"}
    assert not found & {"dataclasses", "enum", "inspect", "contextlib", "re"}


def test_the_core_is_light() -> None:
    found = loaded(f"import vfio_user; [getattr(vfio_user, name) for name in {CORE!r}]")
    assert not found & set(HEAVY)
    assert {"vfio_user.session", "vfio_user.pci.device"} <= found
    rare = {"cli", "testing", "doctor", "inventory", "binding", "drivers", "mdev"}
    assert not {name for name in found if name.split(".")[1:2] and name.split(".")[1] in rare}


def test_drivers_bring_no_heavy_modules() -> None:
    names = ("nvme", "edu", "igb", "virtio", "mtty", "cfi", "pl031")
    assert not loaded(f"import {', '.join(f'vfio_user.drivers.{name}' for name in names)}") & set(HEAVY)


def test_all_names_come_when_asked_for() -> None:
    assert set(vfio_user._HOMES) == set(vfio_user.__all__)
    for name in vfio_user.__all__:
        assert getattr(vfio_user, name) is getattr(importlib.import_module(vfio_user._HOMES[name]), name)
    assert set(vfio_user.__all__) <= set(dir(vfio_user))
    assert vfio_user.errors.VfioError is vfio_user.VfioError
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        vfio_user.nothing  # noqa: B018


def test_import_touches_nothing() -> None:
    """No file is opened below /dev or /sys, no signal handler is taken, no thread is started."""
    code = """
import signal, sys, threading
before = [signal.getsignal(each) for each in (signal.SIGBUS, signal.SIGSEGV, signal.SIGINT)]
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
import vfio_user
[getattr(vfio_user, name) for name in vfio_user.__all__]
assert before == [signal.getsignal(each) for each in (signal.SIGBUS, signal.SIGSEGV, signal.SIGINT)]
assert threading.active_count() == 1
print([name for name in opened if name.startswith(("/dev/", "/sys/"))])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "[]"

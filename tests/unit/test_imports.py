"""What ``import vfio_user`` brings with it: nothing that a driver may never need."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("numpy", "asyncio", "ctypes", "qemu", "cffi", "rich", "pytest", "ioctl_opt", "multiprocessing")


def test_import_is_light() -> None:
    code = f"import sys, vfio_user; print([name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "[]"


def test_import_touches_nothing() -> None:
    """No file is opened below /dev or /sys, no signal handler is taken, no thread is started."""
    code = """
import signal, sys, threading
before = [signal.getsignal(each) for each in (signal.SIGBUS, signal.SIGSEGV, signal.SIGINT)]
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
import vfio_user
assert before == [signal.getsignal(each) for each in (signal.SIGBUS, signal.SIGSEGV, signal.SIGINT)]
assert threading.active_count() == 1
print([name for name in opened if name.startswith(("/dev/", "/sys/"))])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "[]"

"""Choose how QEMU runs the guest: KVM only where a guest was seen to come through with it.

A ``/dev/kvm`` that opens proves little: nested in some clouds it hangs guests, or QEMU can't set a register. So a
guest is booted once with KVM, with a short deadline, and what came of it is remembered until the machine boots again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

from vfio_user.testing import cache

__all__ = ["choose"]

_FOR_EVER = float("inf")

_log = logging.getLogger(__name__)


def choose(accel: str, qemu: str, probe: Callable[[], bool]) -> str:
    """Return ``tcg`` or ``kvm``.

    Args:
        accel: the user's wish; anything but ``auto`` is obeyed.
        qemu: QEMU's path: another QEMU is another question.
        probe: boots a guest with KVM; called at most once for each boot of this machine.
    """
    if accel != "auto":
        return accel
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    key = cache.digest(boot, qemu, str(Path(qemu).stat().st_mtime_ns))

    def ask() -> str:
        _log.info("trying KVM, once until the next boot")
        chosen = "kvm" if probe() else "tcg"
        _log.info("KVM %s", "works" if chosen == "kvm" else "does not run a guest here: guests are emulated")
        return chosen

    return cache.remembered(f"accel-{key}", _FOR_EVER, ask)

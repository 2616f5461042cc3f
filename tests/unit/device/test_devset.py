"""Device sets: who is in, who is first and last, and a lock that names its holder."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import pytest

from tests.unit.forking import in_child
from vfio_user.device.devset import DeviceSet
from vfio_user.errors import BusyError, LockOrderError
from vfio_user.memory import Window

if TYPE_CHECKING:
    from vfio_user import VfioDevice


class Ops:
    def __init__(self, calls: list[str]) -> None:
        self.calls = calls

    def open_first(self, vdev: Fake) -> None:
        self.calls.append(f"first {vdev.name}")

    def close_last(self, vdev: Fake) -> None:
        self.calls.append(f"last {vdev.name}")


class Fake:
    """As much of a device as a set looks at."""

    def __init__(self, name: str, calls: list[str], window: Window | None = None) -> None:
        self.name = name
        self.ops = Ops(calls)
        self.closed = False
        self.window = window

    def close(self) -> None:
        self.closed = True

    @property
    def vdev(self) -> VfioDevice:
        return cast("VfioDevice", self)


def nothing() -> None:
    pass


def test_one_set_for_each_key_while_anybody_has_it() -> None:
    first = DeviceSet.of("a key")
    assert DeviceSet.of("a key") is first
    assert DeviceSet.of("another") is not first
    del first
    gc.collect()
    assert "a key" not in [each.key for each in DeviceSet._sets.values()]


def test_sets_of_different_buses_do_not_share_keys() -> None:
    class OtherSet(DeviceSet):
        pass

    mine, other = DeviceSet.of("k"), OtherSet.of("k")
    assert mine is not other
    assert isinstance(other, OtherSet)


def test_first_and_last() -> None:
    calls: list[str] = []
    together = DeviceSet.of("slot")
    one, two = Fake("b", calls), Fake("a", calls)
    together.join(one.vdev, lambda: calls.append("register b"))
    together.join(two.vdev, lambda: calls.append("register a"))
    assert [each.name for each in together.devices] == ["a", "b"]
    together.leave(one.vdev, one.close, 1)
    together.leave(two.vdev, two.close, 1)
    assert calls == ["first b", "register b", "register a", "last a"]
    together.join(one.vdev, nothing)
    assert calls[-1] == "first b"


def test_who_fails_to_register_is_not_in() -> None:
    calls: list[str] = []
    together = DeviceSet.of("slot")

    def fail() -> None:
        raise BusyError("taken")

    with pytest.raises(BusyError):
        together.join(Fake("a", calls).vdev, fail)
    assert (together.devices, calls) == ((), ["first a", "last a"])


def test_who_can_not_be_closed_stays_in_and_is_told_once() -> None:
    calls: list[str] = []
    together, device = DeviceSet.of("slot"), Fake("a", calls)
    together.join(device.vdev, nothing)

    def busy() -> None:
        raise BusyError("still used")

    for _ in range(2):
        with pytest.raises(BusyError):
            together.leave(device.vdev, busy, 1)
        assert len(together.devices) == 1
    together.leave(device.vdev, device.close, 1)
    assert (len(together.devices), calls) == (0, ["first a", "last a"])


def test_a_device_that_nobody_has_any_more_is_out() -> None:
    together = DeviceSet.of("slot")
    device = Fake("a", [])
    together.join(device.vdev, nothing)
    del device
    gc.collect()
    assert together.devices == ()


def occupied(together: DeviceSet, then: Callable[[], None]) -> None:
    """Call something while another thread has the lock."""
    held, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with together.locked(1):
            held.set()
            leave.wait(10)

    thread = threading.Thread(target=hold, name="resetter")
    thread.start()
    assert held.wait(5)
    try:
        then()
    finally:
        leave.set()
        thread.join(5)


def test_the_lock_names_its_holder() -> None:
    together = DeviceSet.of("slot")

    def check() -> None:
        with pytest.raises(BusyError, match=r"thread resetter \(\d+\)"), together.locked(0.01):
            raise AssertionError

    occupied(together, check)
    with together.locked(0), together.locked(0):
        pass


def test_the_lock_comes_before_memory_locks() -> None:
    window = Window(4096)
    together, device = DeviceSet.of("slot"), Fake("a", [], window)
    together.join(device.vdev, nothing)
    with together.locked(1):
        window.lock_write(1)
        with together.locked(1):
            pass
        window.unlock_write()
    window.lock_write(1)
    with pytest.raises(LockOrderError, match="comes first"), together.locked(1):
        raise AssertionError
    window.unlock_write()
    window.acquire_read()
    with pytest.raises(LockOrderError, match="read section"), together.locked(1):
        raise AssertionError
    window.release_read()
    window.close()


def test_a_forked_child_does_not_wait_for_threads_of_its_parent() -> None:
    together = DeviceSet.of("slot")

    def check() -> None:
        def child() -> None:
            with together.locked(0.1):
                pass

        assert in_child(child) == "None"

    occupied(together, check)

"""The programs of the page on other buses run as they stand, each where there is its bus."""

from __future__ import annotations

import platform
import subprocess
import sys
import time

import pytest

from tests.snippets import TOP, blocks
from vfio_user import testing
from vfio_user.binding import UseKind, lent, uses
from vfio_user.ccw import subchannel, subchannels
from vfio_user.errors import InUseError

AMBA, CHANNEL = blocks(TOP / "docs/howto/buses.md", "{code-block} python")


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


if platform.machine() == "s390x":

    def test_channel_program() -> None:
        found = subchannel(testing.devices("virtio-blk-ccw")[1].address)
        with lent(found, "io_subchannel"):
            deadline = time.monotonic() + 60
            while found.ccw_device is None and time.monotonic() < deadline:
                time.sleep(0.1)  # the kernel asks the device what it is
            assert found.ccw_device == "0.0.0101"
            assert run(CHANNEL).splitlines()[1] == "ff383202000000"
            assert found.driver == "io_subchannel"
            assert not found.mdevs

    def test_what_the_guest_lives_on_is_not_lent() -> None:
        share = next(each for each in subchannels() if any(use.kind is UseKind.SHARE for use in uses(each)))
        with pytest.raises(InUseError, match=r"the share \w+ is mounted at /"), lent(share):
            raise AssertionError("lent")
        assert share.driver == "io_subchannel"

else:

    def test_clock() -> None:
        run(AMBA)

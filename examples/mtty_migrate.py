"""Move a serial port that is in use from one mediated device to another, through a socket, with what is in its FIFO.

python examples/mtty_migrate.py
"""

from __future__ import annotations

import socket
import threading
from contextlib import ExitStack

import vfio_user
from vfio_user.drivers.mtty import Mtty
from vfio_user.mdev import mdev_parent


def main() -> None:
    kind = mdev_parent("mtty").type("mtty-1")
    with ExitStack() as stack:
        instances = [kind.create(), kind.create()]
        for instance in instances:
            stack.callback(instance.remove)
        here, there = (stack.enter_context(vfio_user.open_mdev(each)) for each in instances)
        left, right = (stack.enter_context(each) for each in socket.socketpair())

        with Mtty(here) as mtty:
            mtty.ports[0].configure(baud=9600)
            mtty.ports[0].write(b"not read yet")
        receiver = threading.Thread(target=there.vdev.migration.load, args=(right,))
        receiver.start()
        size = here.vdev.migration.save(left)
        receiver.join()

        print(f"{size} bytes moved; {here.name} is in {here.vdev.migration.state.name}")
        with Mtty(there) as mtty:
            print(f"{there.name} says {mtty.ports[0].read(12)!r}")


if __name__ == "__main__":
    main()

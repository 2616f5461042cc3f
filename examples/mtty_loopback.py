"""Make a mediated device of the kernel's mtty sample, send a line through its serial port, and remove it again.

python examples/mtty_loopback.py
"""

from __future__ import annotations

import vfio_user
from vfio_user.drivers.mtty import Mtty
from vfio_user.mdev import mdev_parent


def main() -> None:
    kind = mdev_parent("mtty").type("mtty-1")
    print(f"{kind}: {kind.title}, {kind.available} more can be made")
    instance = kind.create()
    try:
        with vfio_user.open_mdev(instance) as device, Mtty(device) as mtty:
            port = mtty.ports[0]
            port.configure(baud=9600)
            port.write(b"hello, serial line\n")
            print(f"{instance} says {port.read(19)!r}")
    finally:
        instance.remove()


if __name__ == "__main__":
    main()

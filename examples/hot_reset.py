"""Reset a whole slot, with a driver at work: the plan, the reset, and what each phase of it took.

python examples/hot_reset.py 0000:01:00.0 [0000:01:00.1 ...]
"""

from __future__ import annotations

import sys

import vfio_user


def main(addresses: list[str]) -> None:
    with vfio_user.open_all(addresses) as devices:
        device = devices[0]
        plan = device.device_set.plan()
        print(plan)
        plan.require()  # raises an error that names what is in the way

        bar = device.bar(0)
        view = bar.view(0, 4)  # raw memory: the address stays good over the reset
        before = view.cast("I")[0]
        print(device.device_set.hot_reset())
        after = view.cast("I")[0]
        print(f"first register: {before:#010x} before, {after:#010x} after, by the same view; {device.vdev.health}")


if __name__ == "__main__":
    main(sys.argv[1:])

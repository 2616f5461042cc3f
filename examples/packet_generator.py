"""Send numbered Ethernet frames from one network port to another, and check every byte that arrives.

Both ports are Intel 82576 (igb) or virtio-net, and on one network.

python examples/packet_generator.py 0000:01:00.0 0000:01:00.1
"""

from __future__ import annotations

import random
import sys
import threading
import time

import vfio_user
from vfio_user import PciDevice
from vfio_user.drivers.ethernet import MIN_FRAME, NumberedFrames, format_mac
from vfio_user.drivers.igb import Igb
from vfio_user.drivers.virtio import VirtioNet

FRAMES, BATCH, LONGEST, PATIENCE = 500, 50, 1514, 30.0


def drive(pci: PciDevice) -> Igb | VirtioNet:
    """Choose the driver."""
    return Igb(pci) if Igb.matches(pci) else VirtioNet(pci)


def generate(port: Igb | VirtioNet, stream: NumberedFrames) -> None:
    """Send them all, many at a time; the ring may fill up meanwhile."""
    for first in range(0, FRAMES, BATCH):
        frames = [stream.make(number, random.randint(MIN_FRAME, LONGEST)) for number in range(first, first + BATCH)]
        port.send(frames, timeout=PATIENCE)
    port.flush(timeout=PATIENCE)


def receive(port: Igb | VirtioNet, stream: NumberedFrames) -> int:
    """Take frames until all of the stream have come; give the bytes."""
    expected, size = 0, 0
    while expected < FRAMES:
        frames = port.receive(timeout=PATIENCE)
        for number in stream.check(frames):  # raises when a byte is wrong
            if number != expected:
                sys.exit(f"frame {number} came instead of {expected}")
            expected += 1
        size += sum(map(len, frames))
    return size


def main(first: str, second: str) -> None:
    with vfio_user.open_all([first, second]) as devices, drive(devices[0]) as sender, drive(devices[1]) as receiver:
        for port in (sender, receiver):
            port.wait_link(PATIENCE)
            print(f"{port.name}: {format_mac(port.mac)}, link up")
        stream = NumberedFrames(receiver.mac, sender.mac)
        begin = time.monotonic()
        generator = threading.Thread(target=generate, args=(sender, stream))
        generator.start()
        size = receive(receiver, stream)
        seconds = time.monotonic() - begin
        generator.join()
        print(f"{FRAMES} frames, {size} bytes in {seconds:.2f} s: all there, in order, every byte right")
        if isinstance(sender, Igb):
            print(f"the controller counted {sender.statistics().tx_frames} frames")


if __name__ == "__main__":
    main(*sys.argv[1:3])

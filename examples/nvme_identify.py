"""Say what an NVMe controller is: model, namespaces, health.

python examples/nvme_identify.py 0000:01:00.0
"""

from __future__ import annotations

import sys

import vfio_user
from vfio_user.drivers.nvme import NvmeController


def main(address: str) -> None:
    with vfio_user.open(address) as pci, NvmeController(pci) as controller:
        identify = controller.identify
        print(f"{identify.model}  serial {identify.serial}  firmware {identify.firmware}")
        print(f"NVMe {controller.version}, one command moves up to {controller.max_transfer} bytes")
        for namespace in controller.namespaces:
            size = namespace.size / (1 << 20)
            print(f"namespace {namespace.nsid}: {size:.0f} MiB in blocks of {namespace.block_size} bytes")
        health = controller.smart()
        print(
            f"{health.temperature} °C, {health.percentage_used} % of its life used, {health.media_errors} media errors"
        )


if __name__ == "__main__":
    main(sys.argv[1])

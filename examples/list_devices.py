"""List the PCI functions that are bound to a VFIO driver, with their IOMMU groups."""

from __future__ import annotations

import vfio_user


def main() -> None:
    for function in vfio_user.pci_functions():
        if function.vfio_device is not None:
            print(f"{function.address}  {function.vendor:04x}:{function.device:04x}  group {function.iommu_group}")


if __name__ == "__main__":
    main()

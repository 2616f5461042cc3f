"""How PCI functions hang together: bridges above them, what is below, what is reset together. Reads sysfs only."""

from __future__ import annotations

import os
from collections.abc import Iterator

from vfio_user.addresses import PciAddress
from vfio_user.errors import ArgumentError
from vfio_user.kernel import sysfs
from vfio_user.kernel.sysfs import PciFunction

__all__ = ["below", "parent", "physical_function", "reset_domain", "root_functions", "virtual_functions"]


def parent(function: PciFunction) -> PciFunction | None:
    """Give the bridge that a function hangs on; `None` on a root bus."""
    return _named(os.path.basename(os.path.dirname(os.path.realpath(function.path))))


def below(function: PciFunction) -> tuple[PciFunction, ...]:
    """Give the functions directly below a bridge, ordered by address; none for what is no bridge."""
    try:
        names = os.listdir(function.path)
    except OSError:
        return ()
    found = (_named(name) for name in names)
    return tuple(sorted((each for each in found if each is not None), key=lambda each: each.address))


def root_functions() -> tuple[PciFunction, ...]:
    """Give the functions that sit on a root bus, ordered by address."""
    return tuple(each for each in sysfs.pci_functions() if parent(each) is None)


def reset_domain(function: PciFunction) -> tuple[PciFunction, ...]:
    """Give the functions that a hot reset of this one resets, itself included, ordered by address.

    Those are all that hang on the same bridge, with what is below them. A virtual function, and one on a root bus, is
    alone, and has no hot reset. The kernel has the last word: where a slot can be reset by itself, it may be fewer.
    """
    bridge = None if function.is_virtual else parent(function)
    if bridge is None:
        return (function,)
    return tuple(sorted(_all_below(bridge), key=lambda each: each.address))


def physical_function(function: PciFunction) -> PciFunction | None:
    """Give the physical function of a virtual one; `None` for any other."""
    try:
        return _named(os.path.basename(os.readlink(function.path / "physfn")))
    except OSError:
        return None


def virtual_functions(function: PciFunction) -> tuple[PciFunction, ...]:
    """Give the virtual functions of a physical one, ordered by address."""
    names = (os.path.basename(os.path.realpath(link)) for link in function.path.glob("virtfn*"))
    found = (_named(name) for name in names)
    return tuple(sorted((each for each in found if each is not None), key=lambda each: each.address))


def _all_below(bridge: PciFunction) -> Iterator[PciFunction]:
    for each in below(bridge):
        yield each
        yield from _all_below(each)


def _named(name: str) -> PciFunction | None:
    # sysfs spells addresses in full; host bridges (pci0000:00) and ports (0000:00:1c.0:pcie001) are something else.
    if name.count(":") != 2 or "." not in name:
        return None
    try:
        return PciFunction(PciAddress.parse(name))
    except ArgumentError:
        return None

"""PCI on arm64 behind the SMMU: its MSI window, DMA, and what it says of an IOVA that is not mapped."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable

import pytest

import vfio_user
from tests.buses.conftest import Way
from tests.guest.leaks import nothing_left
from vfio_user import DmaSlice, Iova
from vfio_user.drivers.edu import Edu
from vfio_user.errors import IovaError

Place = Callable[[str], str]
MSI_WINDOW = (0x8000000, 0x80FFFFF)
NOWHERE = 0x900000


def test_the_msi_window_is_no_place_for_memory(place: Place, way: Way) -> None:
    with nothing_left(), vfio_user.open(place("edu"), **way) as pci, pci.dma_alloc(4096) as buffer:
        ranges = pci.address_space.iova_ranges
        assert not any(each.first <= MSI_WINDOW[1] and MSI_WINDOW[0] <= each.last for each in ranges)
        with pytest.raises(IovaError):
            pci.address_space.map(buffer, iova=MSI_WINDOW[0])


def test_edu_interrupts_by_msi_and_moves_data(place: Place, way: Way) -> None:
    with nothing_left(), vfio_user.open(place("edu"), **way) as pci, Edu(pci) as edu, edu.alloc() as buffer:
        assert pci.irqs.msi.vectors
        buffer.view[:16] = b"behind the SMMU!"
        edu.copy_to_device(buffer[:16])
        buffer.view[:16] = bytes(16)
        edu.copy_from_device(buffer[:16])
        assert bytes(buffer.view[:16]) == b"behind the SMMU!"
        assert edu.factorial(5) == 120


def test_an_iova_that_is_not_mapped_is_a_translation_fault(place: Place, way: Way) -> None:
    with nothing_left(), vfio_user.open(place("edu"), **way) as pci, Edu(pci) as edu, edu.alloc() as buffer:
        assert buffer.iova + buffer.size <= NOWHERE or buffer.iova > NOWHERE
        with open("/dev/kmsg", "rb", buffering=0) as log:
            log.seek(0, 2)
            text, deadline = b"", time.monotonic() + 30
            os.set_blocking(log.fileno(), False)
            # Again and again: the kernel writes of ten events in five seconds only, and each word of data is one.
            while not re.search(rb"F_TRANSLATION", text) and time.monotonic() < deadline:
                edu.copy_from_device(DmaSlice(buffer.view[:4], Iova(NOWHERE)))
                time.sleep(0.2)
                text += log.read() or b""
        assert re.search(rb"F_TRANSLATION", text), text.decode(errors="replace")
        assert re.search(rb"0x0*900000\b", text), text.decode(errors="replace")
        assert edu.factorial(4) == 24, "the device works on"

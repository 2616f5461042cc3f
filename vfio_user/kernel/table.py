"""Arrays of structures, filled and read by columns: thousands of arguments without a Python object for each."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Final, Literal

from vfio_user._uapi import ffi, lib
from vfio_user.errors import ArgumentError

if TYPE_CHECKING:
    from vfio_user._uapi import CData

__all__ = ["Table"]

_FORMATS: Final[dict[int, Literal["I", "Q"]]] = {4: "I", 8: "Q"}


class Table:
    """An array of one structure of the uAPI, for `vfio_user.kernel.ioctl.ioctl_many`.

    Lifetime:
        Owns its memory; `rows` must not outlive it.
    Locking:
        None.
    """

    def __init__(self, ctype: str, count: int, **columns: int | range | array[int]) -> None:
        """Make it.

        Args:
            ctype: the structure: ``"struct vfio_iommu_type1_dma_map"``.
            count: how many.
            columns: for each member that is set either one value for all, or ``count`` values: of a range, or an array
                of format ``"Q"``; other members are 0.
        """
        self._ctype = ctype
        self._count = count
        self._stride = ffi.sizeof(ctype)
        self._fields = dict(ffi.typeof(ctype).fields)
        self._memory = memoryview(bytearray(self._stride * count))
        self.rows: CData = self.rows_from(0)
        """The array as the kernel takes it."""
        for name, values in columns.items():
            self._fill(name, values)

    def _fill(self, name: str, values: int | range | array[int]) -> None:
        field, numbers, first, step = self._fields[name], ffi.NULL, 0, 0
        if isinstance(values, int):
            first = values
        elif len(values) != self._count:
            raise ArgumentError(f"{len(values)} values for {name} of {self._count} structures")
        elif isinstance(values, array) and values.typecode != "Q":
            raise ArgumentError(f"values for {name} are of format {values.typecode!r}: give them as 'Q'")
        elif isinstance(values, range):
            first, step = values.start, values.step
        else:
            numbers = ffi.from_buffer("uint64_t[]", values)
        width = ffi.sizeof(field.type)
        assert width in _FORMATS, f"{name} is no integer of 32 or 64 bits"
        if lib.vu_fill_column(self.rows, self._stride, self._count, field.offset, width, numbers, first, step):
            raise ArgumentError(f"a value for {name} has more than its {8 * width} bits")

    def rows_from(self, row: int) -> CData:
        """Give the array from a row on."""
        return ffi.from_buffer(f"{self._ctype}[]", self._memory[row * self._stride :])

    def __len__(self) -> int:
        return self._count

    def column(self, name: str) -> memoryview[int]:
        """Give one member of all the structures, writable; it must be an integer of 32 or 64 bits."""
        field = self._fields[name]
        width = ffi.sizeof(field.type)
        return self._memory.cast(_FORMATS[width])[field.offset // width :: self._stride // width]

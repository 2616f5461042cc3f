"""Arrays of structures, filled and read by columns: thousands of arguments without a Python object for each."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Final, Literal

from vfio_user._uapi import ffi

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

    def __init__(self, ctype: str, count: int, **columns: int | array[int]) -> None:
        """Make it.

        Args:
            ctype: the structure: ``"struct vfio_iommu_type1_dma_map"``.
            count: how many.
            columns: for each member that is set either one value for all, or ``count`` values of format ``"Q"``;
                other members are 0.
        """
        self._ctype = ctype
        self._count = count
        self._stride = ffi.sizeof(ctype)
        self._fields = dict(ffi.typeof(ctype).fields)
        self._memory = memoryview(bytearray(self._stride * count))
        self.rows: CData = self.rows_from(0)
        """The array as the kernel takes it."""
        for name, values in columns.items():
            column = self.column(name)
            same = array(column.format, (values,)) * count if isinstance(values, int) else values
            column[:] = memoryview(same)

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

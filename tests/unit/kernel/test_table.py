"""Arrays of structures by columns, against the structures themselves."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfio_user._uapi import ffi
from vfio_user.errors import ArgumentError
from vfio_user.kernel.table import Table

U64 = st.integers(0, (1 << 64) - 1)


@given(st.lists(st.tuples(U64, U64), min_size=1, max_size=20), st.integers(0, (1 << 32) - 1))
def test_columns_are_members(rows: list[tuple[int, int]], flags: int) -> None:
    iovas, sizes = (array("Q", column) for column in zip(*rows, strict=True))
    table = Table("struct vfio_iommu_type1_dma_map", len(rows), argsz=32, flags=flags, iova=iovas, size=sizes)
    assert [(row.argsz, row.flags, row.vaddr, row.iova, row.size) for row in table.rows] == [
        (32, flags, 0, iova, size) for iova, size in rows
    ]
    assert len(table) == len(table.rows) == len(rows)
    table.rows[0].iova = 17
    assert table.column("iova").tolist() == [17, *iovas[1:]]


@given(st.integers(0, 1 << 60), st.integers(1, 1 << 40), st.integers(1, 50))
def test_column_of_a_range(first: int, step: int, count: int) -> None:
    values = range(first, first + count * step, step)
    table = Table("struct iommu_ioas_map", count, iova=values, ioas_id=range(7, 7 + count))
    assert table.column("iova").tolist() == list(values)
    assert table.column("ioas_id").tolist() == list(range(7, 7 + count))


def test_rows_from_a_row_on() -> None:
    table = Table("struct iommu_ioas_unmap", 3, iova=array("Q", [1, 2, 3]), length=5)
    assert [(row.iova, row.length) for row in table.rows_from(1)] == [(2, 5), (3, 5)]
    assert len(table.rows_from(3)) == 0
    assert ffi.sizeof(table.rows) == 3 * ffi.sizeof("struct iommu_ioas_unmap")


def test_wrong_columns() -> None:
    with pytest.raises(KeyError):
        Table("struct iommu_ioas_unmap", 1, nothing=1)
    with pytest.raises(ArgumentError, match="1 values for iova of 2 structures"):
        Table("struct iommu_ioas_unmap", 2, iova=array("Q", [1]))
    with pytest.raises(ArgumentError, match="of format 'I'"):
        Table("struct iommu_ioas_unmap", 2, iova=array("I", [1, 2]))
    for values in (1 << 32, range(0xFFFFFFFF, 0x100000001), array("Q", [0, 1 << 63])):
        with pytest.raises(ArgumentError, match="a value for ioas_id has more than its 32 bits"):
            Table("struct iommu_ioas_unmap", 2, ioas_id=values)

"""Embedding: one object within another, and the typed way back."""

from __future__ import annotations

import gc
import re
import textwrap
import weakref
from pathlib import Path

import pytest
from mypy import api

from vfio_user import Embedded, container_of


class Inner:
    def __init__(self) -> None:
        self._outer: tuple[object, object] | None = None


class Outer:
    first = Embedded["Outer", Inner]()
    second = Embedded["Outer", Inner]()

    def __init__(self) -> None:
        self.first = Inner()
        self.second = Inner()


class Other:
    first = Embedded["Other", Inner]()

    def __init__(self, inner: Inner) -> None:
        self.first = inner


class Derived(Outer):
    pass


def test_the_way_back() -> None:
    for outer in (Outer(), Derived()):
        assert container_of(outer.first, Outer.first) is outer
        assert container_of(outer.second, Outer.second) is outer


def test_two_of_a_kind_are_told_apart() -> None:
    outer = Outer()
    assert outer.first is not outer.second
    with pytest.raises(TypeError, match=r"is embedded as Outer\.first, not as Outer\.second"):
        container_of(outer.first, Outer.second)


def test_wrong_container() -> None:
    with pytest.raises(TypeError, match=r"is embedded as Outer\.first, not as Other\.first"):
        container_of(Outer().first, Other.first)
    with pytest.raises(TypeError, match=r"is embedded as nothing, not as Other\.first"):
        container_of(Inner(), Other.first)


def test_embedded_once_for_life() -> None:
    outer = Outer()
    with pytest.raises(TypeError, match=r"Outer\.first is embedded once, for life"):
        outer.first = Inner()
    with pytest.raises(TypeError, match=r"is embedded in .*Outer.* already"):
        Other(outer.first)
    assert container_of(outer.first, Outer.first) is outer


def test_not_made_yet() -> None:
    empty = Outer.__new__(Outer)
    assert not hasattr(empty, "first")
    with pytest.raises(AttributeError, match=r"Outer\.first is not made yet"):
        _ = empty.first


def test_one_lifetime() -> None:
    outer = Outer()
    inner = outer.first
    gone = weakref.ref(outer)
    del outer
    gc.collect()
    assert gone() is container_of(inner, Outer.first), "whoever has the inner one, has the outer one"
    del inner
    gc.collect()
    assert gone() is None


SNIPPET = """
    from typing import assert_type
    from vfio_user import Embedded, PciDevice, VfioDevice, container_of

    class Board:
        vdev = Embedded["Board", VfioDevice]()

    def right(vdev: VfioDevice, pci: PciDevice) -> None:
        assert_type(pci.vdev, VfioDevice)
        assert_type(PciDevice.vdev, Embedded[PciDevice, VfioDevice])
        assert_type(container_of(vdev, PciDevice.vdev), PciDevice)
        assert_type(container_of(vdev, Board.vdev), Board)
        reveal_type(container_of(vdev, PciDevice.vdev).config)
"""

WRONG = """
    from vfio_user import PciDevice, VfioDevice, container_of

    def wrong(vdev: VfioDevice) -> int:
        container_of("text", PciDevice.vdev)
        container_of(vdev, vdev)
        return container_of(vdev, PciDevice.vdev)
"""


@pytest.mark.timeout(180)
def test_type_checker_infers_the_outer_type(tmp_path: Path) -> None:
    right, wrong = tmp_path / "right.py", tmp_path / "wrong.py"
    right.write_text(textwrap.dedent(SNIPPET))
    wrong.write_text(textwrap.dedent(WRONG))
    report, errors, _ = api.run(["--strict", "--no-error-summary", str(right), str(wrong)])
    assert not errors
    found = re.findall(r"(\w+)\.py:(\d+): error: ", report)
    assert found == [("wrong", "5"), ("wrong", "6"), ("wrong", "7")], report
    assert 'Revealed type is "vfio_user.pci.config.ConfigSpace"' in report


def test_snippet_runs_as_it_is_written() -> None:
    exec(textwrap.dedent(SNIPPET), {"__name__": "snippet"})

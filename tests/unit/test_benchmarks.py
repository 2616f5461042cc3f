"""What becomes of measured rounds: ratios, the table, the chart, and the comparison of two runs."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ElementTree
from contextlib import nullcontext
from pathlib import Path

import pytest

from benchmarks import catalog, chart, compare, measure, report
from benchmarks.model import Benchmark, Pair, Result


def benchmark(**options: object) -> Benchmark:
    kind: dict[str, object] = {"name": "a", "what": "a < b", "unit": "ns", "peer": "C & co", "goal": 1.1}
    pair = Pair(lambda: 2.0, lambda: 1.0)
    return Benchmark(**kind | {"setup": lambda: nullcontext(pair)} | options)  # type: ignore[arg-type]


def result(*ratios: float, **options: object) -> Result:
    return measure.summarise(benchmark(**options), [measure.Round(each, 1.0) for each in ratios], "here")


def test_rounds_are_in_turn_and_ratios_are_of_a_round() -> None:
    order: list[str] = []

    def slice_of(name: str, costs: list[float]) -> float:
        order.append(name)
        return costs.pop(0)

    mine, theirs = [1.0, 3.0, 4.0, 4.0], [1.0, 1.0, 1.0, 3.0]
    pair = Pair(lambda: slice_of("o", mine), lambda: slice_of("p", theirs))
    found = measure.run(benchmark(setup=lambda: nullcontext(pair)), "here", rounds=1)
    assert "".join(order) == "oppo" * 2
    assert (found.value, found.peer_value, found.ratio) == (4.0, 2.0, 2.0)


@pytest.mark.parametrize(("higher", "met"), [(False, False), (True, True)])
def test_goals(higher: bool, met: bool) -> None:
    found = result(1.0, 1.2, 1.3, higher=higher)
    assert (found.ratio, found.spread, found.met) == (1.2, (1.0, 1.3), met)
    assert ("yes" if met else "NO") in report.table([found])


def test_results_survive_a_file(tmp_path: Path) -> None:
    results = [result(1.0, 1.5), result(3.0, name="b")]
    report.save(tmp_path / "results.json", results)
    assert report.load(tmp_path / "results.json") == results
    (tmp_path / "other.json").write_text("[{}]")
    with pytest.raises(ValueError, match="no result"):
        report.load(tmp_path / "other.json")


def test_chart_has_a_line_for_each_and_is_well_formed() -> None:
    results = [result(0.5), result(100.0, name="b"), result(0.0001, name="c"), result(2.0, name="d", higher=True)]
    root = ElementTree.fromstring(chart.draw(results))
    lines = root.findall("{http://www.w3.org/2000/svg}g")
    assert len(lines) == 4
    texts = ["".join(line.itertext()) for line in lines]
    assert all("a < b" in text and "C & co" in text for text in texts)
    colours = [line.find("{http://www.w3.org/2000/svg}rect").get("fill") for line in lines]  # type: ignore[union-attr]
    assert colours[0] == colours[2] == colours[3] != colours[1]
    for line in lines:
        for rect in line.findall("{http://www.w3.org/2000/svg}rect"):
            assert float(rect.get("width", "-1")) >= 0


def test_comparison_sees_what_is_more_than_noise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = [result(1.0, 1.1, 1.2), result(1.0, 1.1, 1.2, name="b"), result(1.0, name="gone")]
    after = [result(1.1, 1.15, 1.25), result(2.0, 2.1, 2.2, name="b"), result(1.0, name="new")]
    report.save(tmp_path / "before.json", before)
    report.save(tmp_path / "after.json", after)
    files = [str(tmp_path / "before.json"), str(tmp_path / "after.json")]
    assert compare.main(files) == 1
    shown = capsys.readouterr().out
    for words in ("about the same", "WORSE", "only before", "only after"):
        assert words in shown
    assert compare.main(files[::-1]) == 0
    assert "better" in capsys.readouterr().out
    assert compare.change(before[0], dataclasses.replace(after[1], higher=True)) == "better"


def test_names_of_benchmarks_are_their_own() -> None:
    """They are how two runs are compared. Those of the guest are listed in it only."""
    names = [each.name for each in catalog.find("native", [])]
    assert len(set(names)) == len(names) >= 15
    assert all(each.goal > 0 for each in catalog.find("native", []))

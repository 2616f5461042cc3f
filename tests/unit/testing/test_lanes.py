"""The summary of lanes says the truth: what did not run has not passed."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import lanes
from tests.guest.conftest import NEED_IOMMUFD, NEED_SAMPLES
from tests.lanes import LANES, TOP, Lane, Outcome
from vfio_user.testing import Guest, GuestCrashedError

JUNIT = '<testsuites><testsuite tests="{}" failures="{}" errors="{}" skipped="{}"/></testsuites>'


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(lanes, "OUT", tmp_path)
    return tmp_path


def pytest_that(monkeypatch: pytest.MonkeyPatch, code: int, junit: str | None) -> None:
    def play(lane: Lane, folder: Path) -> int:
        if junit is not None:
            (folder / "junit.xml").write_text(junit)
        return code

    monkeypatch.setattr(lanes, "_pytest", play)


@pytest.mark.parametrize(
    ("code", "junit", "counts", "problem"),
    [
        (0, JUNIT.format(5, 0, 0, 0), (5, 0, 0), ""),
        (0, JUNIT.format(5, 0, 0, 2), (3, 0, 2), ""),
        (1, JUNIT.format(5, 1, 1, 0), (3, 2, 0), ""),
        (5, JUNIT.format(0, 0, 0, 0), (0, 1, 0), "it ran no test"),
        (0, JUNIT.format(2, 0, 0, 2), (0, 1, 2), "it ran no test"),
        (2, JUNIT.format(5, 0, 0, 0), (5, 1, 0), "pytest ended with 2"),
        (1, JUNIT.format(5, 0, 0, 0), (5, 1, 0), "pytest ended with 1"),
        (4, None, (0, 1, 0), "no results"),
        (0, None, (0, 1, 0), "no results"),
    ],
)
def test_outcomes(
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    junit: str | None,
    counts: tuple[int, int, int],
    problem: str,
) -> None:
    pytest_that(monkeypatch, code, junit)
    outcome = lanes.run_lane(Lane("unit", ("tests/unit",)))
    assert (outcome.passed, outcome.failed, outcome.skipped) == counts
    assert outcome.problem.startswith(problem)
    assert bool(outcome.problem) == bool(problem)


@pytest.mark.parametrize("error", [GuestCrashedError("panic"), subprocess.TimeoutExpired("pytest", 1), OSError("x")])
def test_a_lane_that_cannot_run_has_failed(out: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(lanes, "run", fail)
    outcome = lanes.run_lane(Lane("guest", ("tests/guest",), Guest()))
    assert (outcome.passed, outcome.failed) == (0, 1)
    assert outcome.problem.startswith(type(error).__name__)


@pytest.mark.parametrize(("code", "counts"), [(0, (1, 0)), (3, (0, 1))])
def test_a_command_counts_as_one_test(
    out: Path, monkeypatch: pytest.MonkeyPatch, code: int, counts: tuple[int, int]
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, code))
    outcome = lanes.run_lane(Lane("demo", command=("demo",)))
    assert (outcome.passed, outcome.failed) == counts
    assert bool(outcome.problem) == bool(code)


def test_old_results_do_not_count(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (out / "unit").mkdir()
    (out / "unit/junit.xml").write_text(JUNIT.format(5, 0, 0, 0))
    pytest_that(monkeypatch, 0, None)
    assert lanes.run_lane(Lane("unit", ())).failed == 1


def test_the_last_line_is_the_plain_total() -> None:
    table = lanes.summary([Outcome("a", 3, 0, 1, 2.0), Outcome("b", 4, 2, 0, 1.0, "bad\nworse")])
    assert table.splitlines()[-1] == "total: 7 passed, 2 failed, 1 skipped"
    assert "bad" in table
    assert "worse" not in table


def test_what_failed_is_said_at_the_end(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The output of a lane is long, and a CI may keep only the end of it."""
    cases = (
        '<testcase classname="tests.test_x" name="test_a"><failure message="Error: 1 is 2&#10;more"/></testcase>'
        '<testcase classname="tests.test_x" name="test_b"><error message=""/></testcase><testcase name="test_c"/>'
    )
    junit = f'<testsuites><testsuite tests="3" failures="1" errors="1" skipped="0">{cases}</testsuite></testsuites>'
    pytest_that(monkeypatch, 1, junit)
    outcome = lanes.run_lane(Lane("unit", ()))
    assert lanes.summary([outcome]).splitlines()[:2] == [
        "failed in unit: tests.test_x::test_a: Error: 1 is 2",
        "failed in unit: tests.test_x::test_b: it does not say why",
    ]


@pytest.mark.parametrize(("junit", "code"), [(JUNIT.format(1, 0, 0, 0), 0), (JUNIT.format(1, 1, 0, 0), 1), (None, 1)])
def test_exit_code(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], junit: str | None, code: int
) -> None:
    pytest_that(monkeypatch, 0 if code == 0 else 1, junit)
    assert lanes.main(["--jobs", "1", "unit", "uapi"]) == code
    assert capsys.readouterr().out.splitlines()[-1].startswith("total: ")


def test_an_unknown_lane_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert lanes.main(["moon"]) == 2
    assert "no lane matches moon" in capsys.readouterr().out


def test_lane_names_are_unique() -> None:
    names = [lane.name for lane in lanes.LANES]
    assert len(names) == len(set(names))


def test_a_lane_runs_again_when_the_emulator_died_and_only_then(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lane = lanes.Lane("guest", ("tests/guest",), Guest())
    runs: list[str] = []

    def die(reason: str) -> Callable[..., object]:
        def play(*_: object, **__: object) -> object:
            runs.append(reason)
            raise GuestCrashedError(reason)

        return play

    for reason, times in (("QEMU ended with -6: assertion", 2), ("the guest's kernel panicked", 1)):
        runs.clear()
        monkeypatch.setattr(lanes, "run", die(reason))
        assert lanes.run_lane(lane).problem
        assert len(runs) == times


def test_several_lanes_at_once_show_their_output_whole(
    out: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    both_run = threading.Barrier(2)

    def apart(lane: Lane) -> Outcome:
        both_run.wait(30)
        (out / f"{lane.name}.log").write_text(f"first of {lane.name}\nlast of {lane.name}\n")
        return Outcome(lane.name, 3, failed=int(lane.name == "uapi"))

    monkeypatch.setattr(lanes, "_run_apart", apart)
    assert lanes.main(["--jobs", "2", "uapi", "unit"]) == 1
    told = capfdbinary.readouterr().out.decode()
    for name in ("unit", "uapi"):
        assert f"first of {name}\nlast of {name}\n" in told
    assert told.splitlines()[-1] == "total: 6 passed, 1 failed, 0 skipped"


def test_a_lane_in_a_process_of_its_own(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its outcome comes back by a file; without one it has failed, whatever its exit code was."""

    def child(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        left = command[command.index("--result") + 1]
        if works:
            Path(left).write_text(json.dumps(dataclasses.asdict(Outcome("unit", 5, 0, 1, 2.0))))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", child)
    works = True
    assert lanes._run_apart(Lane("unit")) == Outcome("unit", 5, 0, 1, 2.0)
    works = False
    assert lanes._run_apart(Lane("unit")).failed == 1


def test_a_result_file(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest_that(monkeypatch, 0, JUNIT.format(5, 0, 0, 2))
    assert lanes.main(["--result", str(out / "result"), "unit"]) == 0
    left = Outcome(**json.loads((out / "result").read_text()))
    assert (left.lane, left.passed, left.skipped) == ("unit", 3, 2)


def test_a_lane_that_takes_as_long_as_it_is_told() -> None:
    lane = Lane("stress", ("tests/stress",), Guest(), minutes=0.5)
    assert "--minutes=0.5" in lanes._command(lane, "")
    longer = lane.lasting(10)
    assert "--minutes=10" in lanes._command(longer, "")
    assert longer.timeout >= lane.timeout + 60 * 10
    other = Lane("unit", ("tests/unit",))
    assert other.lasting(10) == other
    assert not [word for word in lanes._command(other, "") if "minutes" in word]


def test_a_lane_that_carries_as_much_as_it_is_told(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lane = Lane("traffic", ("tests/traffic",), Guest(), gib=0.5)
    assert "--gib=0.5" in lanes._command(lane, "")
    more = lane.carrying(10)
    assert "--gib=10" in lanes._command(more, "")
    assert more.timeout >= lane.timeout + 9 * 120
    other = Lane("unit", ("tests/unit",))
    assert other.carrying(10) == other
    assert not [word for word in lanes._command(other, "") if "gib" in word]
    seen: list[float] = []

    def play(lane: Lane, folder: Path) -> int:
        seen.append(lane.gib)
        (folder / "junit.xml").write_text(JUNIT.format(1, 0, 0, 0))
        return 0

    monkeypatch.setattr(lanes, "_run_tests", lambda lane, folder: (play(lane, folder), Outcome(lane.name, 1))[1])
    assert lanes.main(["--jobs", "1", "--gib", "10", "traffic", "unit"]) == 0
    assert seen == [0.0, 10.0]


def runs(lane: Lane, test: str) -> bool:
    """Tell whether pytest is given a file, or a folder that it is in, and whether the guest has what it needs."""
    if lane.guest is None or f"--ignore={test}" in lane.tests:
        return False
    lacking = Path(test).name in NEED_IOMMUFD + NEED_SAMPLES and lane.guest.kernel != "feature"
    return not lacking and any(test == word or test.startswith(f"{word}/") for word in lane.tests)


@pytest.mark.parametrize("folder", ["guest", "unusual", "corners", "stress", "traffic", "buses"])
def test_every_test_that_needs_a_guest_is_in_a_lane(folder: str) -> None:
    files = sorted(str(path.relative_to(TOP)) for path in (TOP / "tests" / folder).rglob("test_*.py"))
    assert files
    assert [each for each in files if not any(runs(lane, each) for lane in LANES)] == []


def test_what_is_bytes_runs_on_the_machine_with_the_other_byte_order() -> None:
    """A unit test that packs, unpacks or casts is in the lane of s390x, or is named as one that need not be."""
    handles = re.compile(r"\bstruct\.\w|\b(from|to)_bytes\(|\.cast\(\"[BbHhIiQq]\"|ffi\.(cast|buffer|memmove)\(")
    files = sorted((TOP / "tests/unit").rglob("test_*.py"))
    found = {str(path.relative_to(TOP)) for path in files if handles.search(path.read_text())}
    (lane,) = (lane for lane in LANES if lane.name == "s390x")
    there = {each for each in found if any(each == word or each.startswith(f"{word}/") for word in lane.tests)}
    assert len(there) > 20
    assert sorted(found - there) == sorted(lanes.NOT_ON_WIRE)


def test_what_lanes_are_given_is_there() -> None:
    words = {word.removeprefix("--ignore=") for lane in LANES for word in lane.tests}
    names = {word.removeprefix("--deselect=").partition("::")[0] for word in words}
    assert [each for each in sorted(names) if not (TOP / each).exists()] == []

"""The command ``vfio-user reset``."""

from __future__ import annotations

import json
import subprocess
import sys

from vfio_user import testing


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vfio_user.cli", "reset", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_plan_and_report_for_people() -> None:
    first, second = (each.address for each in testing.devices("edu")[1:3])
    done = run(first, second)
    assert done.returncode == 0, done.stderr
    assert f"hot reset of {first}: possible" in done.stdout
    assert f"hot reset of {first}, {second}:" in done.stdout
    assert "memory given back" in done.stdout
    assert " ms" in done.stdout


def test_a_dry_run_resets_nothing_and_says_what_is_missing() -> None:
    first, second = (each.address for each in testing.devices("igb"))
    done = run(first, "--dry-run")
    assert done.returncode == 1
    assert "not possible" in done.stdout
    assert f"{second}  vfio-pci" in done.stdout
    assert "not ours" in done.stdout
    assert " ms" not in done.stdout
    refused = run(first)
    assert refused.returncode == 2
    assert f"NotOwnedError: a hot reset of {first} also resets {second}" in refused.stderr


def test_siblings_are_found() -> None:
    first, second = (each.address for each in testing.devices("igb"))
    done = run(first, "--siblings", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    (plan,) = told["plans"]
    assert plan["possible"] is True
    assert [each["address"] for each in plan["affected"]] == [first, second]
    (report,) = told["reports"]
    assert report["devices"] == [first, second]
    assert [phase["name"] for phase in report["phases"]].count("reset") == 1
    assert report["seconds"] > 0


def test_functions_alone() -> None:
    address = testing.device("nvme").address
    done = run(address, "--function", "--json")
    assert done.returncode == 0, done.stderr
    assert [each["kind"] for each in json.loads(done.stdout)["reports"]] == ["function reset"]
    assert "by flr" in run(address, "--function", "--dry-run").stdout


def test_what_can_not_be_reset_is_an_error() -> None:
    address = testing.devices("edu")[-1].address
    done = run(address)
    assert done.returncode == 2
    assert "root bus" in done.stderr
    assert run("7f:1f.7").returncode == 2

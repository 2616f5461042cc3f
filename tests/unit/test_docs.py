"""The documentation names commands, pages and figures that there are."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.snippets import TOP, commands, pages
from vfio_user.cli import build_parser

PAGES = pages()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_every_command_line_is_understood(page: Path) -> None:
    for line in commands(page):
        words = shlex.split(line, comments=True)
        try:
            build_parser(words).parse_args(words)
        except SystemExit as error:
            pytest.fail(f"{page.name}: vfio-user does not understand {line!r} ({error.code})")


def test_there_are_commands_to_check() -> None:
    assert sum(len(commands(page)) for page in PAGES) > 15


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_every_file_that_is_named_is_there(page: Path) -> None:
    for name in re.findall(r"`((?:examples|vfio_user|tests|_cdefs)/[\w./-]+)`", page.read_text()):
        assert (TOP / name).exists(), f"{page.name} names {name}"


def test_every_package_has_its_reference() -> None:
    """What a user may import is in the reference; the parts that only the commands use are not."""
    text = "".join(page.read_text() for page in PAGES if page.parent.name == "reference")
    packages = {path.parent.name for path in (TOP / "vfio_user").glob("*/__init__.py")} - {"cli", "kernel"}
    drivers = {path.stem for path in (TOP / "vfio_user/drivers").iterdir() if path.stem[0] not in "._"}
    missing = [name for name in sorted(packages) if f"automodule:: vfio_user.{name}" not in text]
    missing += [name for name in sorted(drivers) if f"automodule:: vfio_user.drivers.{name}" not in text]
    assert not missing


def test_names_in_the_readme_are_there_after_the_import() -> None:
    names = sorted(set(re.findall(r"\bvfio_user(?:\.\w+)+", (TOP / "README.md").read_text())))
    assert "vfio_user.handover.carry" in names
    # In a process of its own: here, other tests have imported most modules already.
    code = "import vfio_user\n" + "\n".join(names)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr

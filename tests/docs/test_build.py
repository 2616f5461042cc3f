"""The documentation builds, without a warning, and has what it is to have."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import vfio_user
from tests.snippets import TOP


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", str(TOP / "docs"), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.timeout(600)
def test_public_names_are_in_the_reference(site: Path) -> None:
    pages = "\n".join(path.read_text() for path in sorted((site / "reference").glob("*.html")))
    missing = [name for name in vfio_user.__all__ if f".{name}" not in pages]
    assert not missing


@pytest.mark.timeout(600)
def test_figures_are_shown(site: Path) -> None:
    shown = {path.name for path in (site / "_images").iterdir()}
    assert {path.name for path in (TOP / "docs/figures").iterdir()} <= shown

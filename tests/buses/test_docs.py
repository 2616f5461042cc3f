"""The program of the page on other buses runs as it stands."""

from __future__ import annotations

import subprocess
import sys

from tests.snippets import TOP, blocks


def test_program() -> None:
    (program,) = blocks(TOP / "docs/howto/buses.md", "{code-block} python")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr

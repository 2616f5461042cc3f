"""Pieces of code and commands in the documentation, for the tests that run them.

In Markdown, blocks of ``python`` of one page are one program, run in a guest; blocks of ``sh`` are run there too. A
``{code-block} python`` is a program by itself, for a guest of another architecture (`tests/buses`). A ``console`` block
shows what a person types at ``$``: its ``vfio-user`` commands have to be understood by the parser.
"""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["TOP", "blocks", "commands", "pages"]

TOP = Path(__file__).resolve().parent.parent

_BLOCK = re.compile(r"^```((?:\{code-block\} )?\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def pages() -> list[Path]:
    """Return the pages of the documentation, and the README."""
    return [TOP / "README.md", *sorted((TOP / "docs").rglob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """Return the code blocks of one language in a page."""
    return [text for found, text in _BLOCK.findall(page.read_text()) if found == language]


def commands(page: Path) -> list[str]:
    """Return the ``vfio-user`` command lines of a page, without the command's own name."""
    found = []
    for text in (*blocks(page, "console"), *blocks(page, "sh")):
        for line in text.replace("\\\n", " ").splitlines():
            match = re.match(r"(?:\$ )?(?:sudo (?:\$\(command -v )?)?vfio-user\)? (.*)", line.strip())
            if match:
                found.append(match.group(1))
    return found

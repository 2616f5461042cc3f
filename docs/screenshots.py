r"""Make the screenshots of the documentation: what the tool shows on a terminal in a guest, as drawings.

In a shell::

    vfio-user guest --kernel 6.12 --device edu --device nvme,size=64M --device edu+edu --output OUT -- \
        env PYTHONPATH=. python docs/screenshots.py
    cp OUT/*.svg docs/figures
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from rich.console import Console
from rich.text import Text

import vfio_user
from tests.guest.terminal import Terminal
from vfio_user import testing
from vfio_user.drivers.edu import Edu

EDU, NVME = "0000:01:00.0", "0000:02:00.0"
#: What erases a line: a live view does so to each of its lines before it draws them anew.
_ERASED = "\x1b[2K"
#: Fonts that the drawing would fetch from elsewhere; a page that shows it as an image may not.
_FONTS = re.compile(r"\s*@font-face \{.*?\}", re.DOTALL)


def shot(name: str, *words: str) -> None:
    """Run ``vfio-user WORDS`` on a terminal, and draw what is on it at the end."""
    with tempfile.TemporaryDirectory() as folder, Terminal(Path(folder) / "cast", *words) as terminal:
        terminal.finish()
        seen = Text.from_ansi(terminal.raw.rpartition(_ERASED)[2].replace("\r", "").strip("\n"))
    out = Console(record=True, file=io.StringIO(), width=max(map(len, seen.plain.splitlines())) + 1)
    out.print(seen)
    drawing = _FONTS.sub("", out.export_svg(title=f"vfio-user {' '.join(words)}", unique_id=name))
    (testing.output() / f"{name}.svg").write_text("".join(f"{line.rstrip()}\n" for line in drawing.splitlines()))


def drive(edu: Edu, stop: threading.Event) -> None:
    """Use a device until it is enough."""
    number = 0
    while not stop.wait(0.1):
        edu.factorial(number := (number + 1) % 13)


def main() -> None:
    """Take all of them."""
    shot("tree", "tree")
    stop = threading.Event()
    with vfio_user.open(EDU) as pci, vfio_user.Monitor(pci), Edu(pci) as edu, edu.alloc():
        thread = threading.Thread(target=drive, args=(edu, stop))
        thread.start()
        try:
            shot("watch", "watch", EDU, "--count", "3")
        finally:
            stop.set()
            thread.join()
    tool = [sys.executable, "-m", "vfio_user.cli"]
    subprocess.run([*tool, "unbind", NVME], check=True)
    try:
        shot("doctor", "doctor", NVME)
    finally:
        subprocess.run([*tool, "restore", NVME], check=True)


if __name__ == "__main__":
    main()

"""Draw docs/images/terminal.svg: a real session on the demo's pictures, as a terminal shows it.

make demo && .venv/bin/python docs/terminal.py
"""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parents[1]
PICTURES, RUN = "runs/demo-pictures", "runs/digits"
SESSION = (
    f"resnet train {PICTURES} --recipe digits --epochs 12 --out {RUN}",
    f"resnet predict {RUN} {PICTURES}/val/7/0081.png {PICTURES}/val/3 --top 2",
)
LINES = 4  # of a command's output that are shown at most, but for the first one's


def output(command: str) -> str:
    words = [sys.executable, "-m", "resnetkit", *shlex.split(command)[1:]]
    environment = {**os.environ, "FORCE_COLOR": "1"}
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout


def main() -> None:
    shutil.rmtree(ROOT / RUN, ignore_errors=True)
    console = Console(record=True, width=112, file=io.StringIO(), force_terminal=True)
    for number, command in enumerate(SESSION):
        console.print(Text.assemble(("$ ", "bold green"), (command, "bold")))
        lines = output(command).splitlines()
        shown = lines if number == 0 else lines[:LINES]
        for line in [*shown, *(["…"] if len(shown) < len(lines) else [])]:
            console.print(Text.from_ansi(line))
    drawing = re.sub(r"@font-face \{.*?\}\s*", "", console.export_svg(title="resnet"), flags=re.DOTALL)  # no web fonts
    (ROOT / "docs" / "images" / "terminal.svg").write_text(drawing, encoding="utf-8")


if __name__ == "__main__":
    main()

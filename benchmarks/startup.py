"""Time until `resnet --help` and `resnet recipe list` are done, beside a Python that does nothing.

    python benchmarks/startup.py [--out results/startup.json]

The commands take turns; the figures are medians in seconds of wall time, with warm page cache.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from common import write

REPEATS = 15
RESNET = str(Path(sys.executable).with_name("resnet"))
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "resnet --help": [RESNET, "--help"],
    "resnet recipe list": [RESNET, "recipe", "list"],
}


def seconds(command: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results/startup.json"))
    args = parser.parse_args()
    for command in COMMANDS.values():
        seconds(command)
    rows = [{name: round(seconds(command), 4) for name, command in COMMANDS.items()} for _ in range(REPEATS)]
    medians = {name: statistics.median(row[name] for row in rows) for name in COMMANDS}
    write(args.out, {"what": "seconds until a command is done", "seconds": medians, "repeats": rows})


if __name__ == "__main__":
    main()

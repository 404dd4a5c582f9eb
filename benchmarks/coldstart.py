"""From the start of a process to the answer for one JPEG: `resnet predict` on an exported ResNet-50, and a timm script.

    python benchmarks/coldstart.py PICTURE [--out results/coldstart.json]

Seconds of wall time of whole processes, from before the fork until standard output has ended, page cache warm. The
commands take turns. What `resnet predict` prepares at its first use on a machine is there: that once costs `first_use`
seconds, measured apart.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import spread, write
from engines import model_file
from resnetkit.exporting import export

ROUNDS = 11
RESNET = str(Path(sys.executable).with_name("resnet"))


def seconds(command: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", help="a JPEG file")
    parser.add_argument("--out", type=Path, default=Path("results/coldstart.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        model = model_file("resnet50", Path(folder))
        exported = model.with_suffix(".onnx")
        export(model, "onnx", exported)
        timm = str(Path(__file__).with_name("timm_predict.py"))
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "resnet predict": [RESNET, "predict", str(exported), args.picture, "--json"],
            "timm script": [sys.executable, timm, str(model), args.picture],
        }
        first_use = seconds(commands["resnet predict"])
        for command in commands.values():
            seconds(command)
        names = list(commands)
        rows = []
        for number in range(ROUNDS):
            order = names[number % 3 :] + names[: number % 3]
            rows.append({name: seconds(commands[name]) for name in order})
    what = "seconds from the start of a process to the answer of ResNet-50 for one JPEG"
    medians = {name: statistics.median(row[name] for row in rows) for name in commands}
    ratio = spread([row["timm script"] / row["resnet predict"] for row in rows])
    write(args.out, {"what": what, "seconds": medians, "first_use": first_use, "ratio": ratio, "rounds": rows})


if __name__ == "__main__":
    main()

"""Answers over a Ray cluster of this one machine against `resnet predict` on it: what the cluster costs.

    python benchmarks/ray_scoring.py FOLDER [--network resnet18] [--parts 3] [--out results/ray.json]

Two things take turns, every other time in reverse, each in a process of its own that writes .parquet files:

plain   `prediction.predict` into a table, as `resnet predict --out x.parquet`
ray     `cluster.plan` and `score`, as `resnet predict --ray --out folder/`

The pictures of FOLDER are repeated until there are so many parts of 1,024. The model is exported to ONNX, the engine
chosen beforehand. whole is all pictures over all seconds of the process, Ray's start and end included; steady leaves
out everything up to the end of the first part, and what comes after the last one is written. The figures are the
medians of the ratios within a turn.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common import spread, write
from engines import model_file
from resnetkit import cluster, prediction
from resnetkit.answers import open_table
from resnetkit.data.loader import default_threads
from resnetkit.exporting import export

REPEATS = 5
PART = cluster.PART_BATCHES * prediction.BATCH


def plain(model: str, names: list[str], out: Path, engine: str) -> list[float]:
    """When each part's worth of rows was written."""
    moments = []
    with open_table(str(out / "x.parquet"), 5, append=False, model="") as table:
        for number, answer in enumerate(prediction.predict(model, names, engine=engine), 1):
            table.write([answer])
            if number % PART == 0:
                moments.append(time.time())
    return [*moments[:-1], (out / "x.parquet").stat().st_mtime]


def over_ray(model: str, names: list[str], out: Path, engine: str) -> list[float]:
    """When each part was there."""
    for _ in cluster.score(cluster.plan(model, names, out, engine=engine)):
        pass
    return sorted(path.stat().st_mtime for path in out.iterdir())


SIDES = {"plain": plain, "ray": over_ray}


def turn(side: str, model: Path, listed: Path, engine: str) -> dict[str, float]:
    """A side in a new process: seconds in all, and to the end of its first part; pictures a second after that."""
    with tempfile.TemporaryDirectory() as out:
        began = time.time()
        command = [sys.executable, __file__, "--side", side, str(model), str(listed), out, engine]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        moments = json.loads(told.splitlines()[-1])
    ended = time.time()
    pictures = PART * len(moments)
    return {
        "whole": pictures / (ended - began),
        "steady": (pictures - PART) / (moments[-1] - moments[0]),
        "seconds_to_first_part": moments[0] - began,
    }


def measure(paths: list[Path], network: str, parts: int) -> dict[str, Any]:
    names = list(itertools.islice(itertools.cycle(map(str, paths)), parts * PART))
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "m.onnx"
        export(model_file(network, Path(folder)), "onnx", model)
        opened = prediction.start(model)
        listed = Path(folder) / "names.json"
        listed.write_text(json.dumps(names))
        rows = []
        for number in range(REPEATS):
            order = list(SIDES) if number % 2 == 0 else list(SIDES)[::-1]
            rows.append({side: turn(side, model, listed, opened.engine) for side in order})
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    ratios = {what: spread([row["ray"][what] / row["plain"][what] for row in rows]) for what in ("steady", "whole")}
    first = [row["ray"]["seconds_to_first_part"] - row["plain"]["seconds_to_first_part"] for row in rows]
    return {
        "engine": opened.engine,
        "ray_to_plain": ratios,
        "seconds_more_to_the_first_part": spread(first),
        "images_per_second": {
            side: {what: spread([row[side][what] for row in rows]) for what in ("steady", "whole")} for side in SIDES
        },
        "turns": rows,
    }


def main() -> None:
    if sys.argv[1:2] == ["--side"]:
        side, model, listed, out, engine = sys.argv[2:]
        print(json.dumps(SIDES[side](model, json.loads(Path(listed).read_text()), Path(out), engine)))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="JPEG files")
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--parts", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("results/ray.json"))
    args = parser.parse_args()
    paths = sorted(path for path in args.folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not paths:
        sys.exit(f"{args.folder}: no .jpg or .jpeg files in it")
    about = {
        "what": "pictures a second over a Ray cluster of one machine, to those of resnet predict on it",
        "network": args.network,
        "pictures": args.parts * PART,
        "mean_kilobytes": round(sum(path.stat().st_size for path in paths) / len(paths) / 1000, 1),
        "threads": default_threads(),
        "ray": version("ray"),
    }
    write(args.out, about | measure(paths, args.network, args.parts))


if __name__ == "__main__":
    main()

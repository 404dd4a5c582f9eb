"""From JPEG files to answers: `predict` against the bare engine and against decoding alone, on all cores.

    python benchmarks/wholepath.py FOLDER [--networks resnet18,resnet50] [--out results/wholepath.json]

Three things take turns, the order rotating from round to round, in one process and on the same files:

whole    `prediction.answers`: read, decode, resize, crop, network, softmax, the first five classes
engine   the same engine on the same pictures, decoded beforehand, in the same batches
decoder  read, decode, resize and crop alone, in as many threads as there are cores

The limit is the slower one of the last two, round by round; the figure is the median of whole / limit. As network and
decoder share the cores, no more than 1 / (1 / engine + 1 / decoder) can be had: that share is given too.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from common import spread, write
from engines import PREPROCESS, model_file
from resnetkit.data.loader import default_threads, in_threads
from resnetkit.engines.engine import Pixels
from resnetkit.engines.opening import Opened
from resnetkit.prediction import BATCH, answers, fill, in_batches, start

ROUNDS = 7


def whole(opened: Opened, names: list[str], _: list[Pixels]) -> int:
    return sum(map(len, answers(opened, in_batches(names), 5, 0.0, "the model")))


def engine(opened: Opened, _: list[str], pictures: list[Pixels]) -> int:
    return sum(len(opened.run(batch)) for batch in pictures)


def decoder(opened: Opened, names: list[str], _: list[Pixels]) -> int:
    preprocess = opened.about.preprocess
    out = np.empty((BATCH, preprocess.size, preprocess.size, preprocess.channels), dtype=np.uint8)

    def groups() -> Any:
        for batch in in_batches(names):
            yield [lambda row=row, name=name: fill(out[row], name, preprocess) for row, name in enumerate(batch)]

    return sum(map(len, in_threads(default_threads(), groups())))


SIDES = {"whole": whole, "engine": engine, "decoder": decoder}


def measure(model: Path, names: list[str]) -> dict[str, Any]:
    """Pictures a second of each side, round by round."""
    opened = start(model)
    pictures = []
    for batch in in_batches(names):
        pictures.append(np.empty((len(batch), 224, 224, 3), dtype=np.uint8))
        for row, name in enumerate(batch):
            assert fill(pictures[-1][row], name, PREPROCESS) is None, name
    for side in SIDES.values():
        side(opened, names[: 2 * BATCH], pictures[:2])
    rows = []
    for number in range(ROUNDS):
        row, order = {}, list(SIDES)
        for name in order[number % 3 :] + order[: number % 3]:
            begin = time.perf_counter()
            assert SIDES[name](opened, names, pictures) == len(names)
            row[name] = len(names) / (time.perf_counter() - begin)
        rows.append(row)
    shared = [1 / (1 / row["engine"] + 1 / row["decoder"]) for row in rows]
    limits = [min(row["engine"], row["decoder"]) for row in rows]
    return {
        "engine": opened.engine,
        "why": opened.why,
        "to_limit": spread([row["whole"] / limit for row, limit in zip(rows, limits, strict=True)]),
        "to_shared_cores": spread([row["whole"] / both for row, both in zip(rows, shared, strict=True)]),
        "images_per_second": {name: statistics.median(row[name] for row in rows) for name in SIDES},
        "rounds": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="JPEG files")
    parser.add_argument("--networks", default="resnet18,resnet50,resnet152")
    parser.add_argument("--out", type=Path, default=Path("results/wholepath.json"))
    args = parser.parse_args()
    paths = sorted(path for path in args.folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not paths:
        sys.exit(f"{args.folder}: no .jpg or .jpeg files in it")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in args.networks.split(","):
            found[name] = measure(model_file(name, Path(folder)), list(map(str, paths)))
    size = round(sum(path.stat().st_size for path in paths) / len(paths) / 1000, 1)
    about = {"pictures": len(paths), "mean_kilobytes": size, "batch": BATCH, "threads": default_threads()}
    write(
        args.out, {"what": "pictures a second from JPEG files to answers, and of its parts", **about, "results": found}
    )


if __name__ == "__main__":
    main()

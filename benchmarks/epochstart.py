"""Ten million pictures in a thousand shards: opening their indexes, what they take in memory, the order of an epoch.

    python benchmarks/epochstart.py [--pictures 10000000] [--out results/epochstart.json]

The shards are holes in files, beside real indexes as `resnet shard` writes them (without SHA-256). Each repeat is a
process of its own, with the indexes in the page cache; resident memory is that above a process that only imported.
An epoch's start is everything between the wish for its first batch and the first index of it: the order, for pictures
at hand and for shards that lie far away. On a machine that others use too, processor seconds are less than seconds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from common import spread, write
from resnetkit.data import tarindex
from resnetkit.data.loader import gathered, shown
from resnetkit.data.pictures import Data
from resnetkit.data.shards import load_shards

SHARDS, REPEATS = 1000, 5


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def make(folder: Path, pictures: int) -> None:
    each = pictures // SHARDS
    columns: dict[str, Any] = {
        "offsets": np.arange(1, each + 1, dtype=np.uint32) * 215,
        "lengths": np.full(each, 109_000, np.uint32),
        "labels": np.arange(each, dtype=np.int32) % 1000,
    }
    size = (each + 1) * 215 * 512 + 109_000
    about = {"bytes": size, "classes": [f"n{k:08}" for k in range(1000)], "set": "s", "odd": {}, "grey": False}
    index = tarindex.dump(columns, [f"train/n{k:08}/{k:08}.jpg" for k in range(each)], about)
    for k in range(SHARDS):
        path = folder / f"train-{k:06}.tar"
        with path.open("wb") as file:
            file.truncate(size)
        path.with_name(path.name + tarindex.SUFFIX).write_bytes(index)


@contextmanager
def timed(found: dict[str, float], name: str) -> Iterator[None]:
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    found[f"{name}_seconds"] = time.perf_counter() - wall
    found[f"{name}_processor_seconds"] = time.process_time() - cpu


def once(folder: Path) -> dict[str, float]:
    """In a fresh process: open, then two epochs of each order."""
    names = [str(path) for path in sorted(folder.glob("*.tar"))]
    before = resident()
    found: dict[str, float] = {}
    with timed(found, "open"):
        near = load_shards(names, "synthetic")
    found["resident_mb"] = (resident() - before) / 1e6
    pictures: Any = near.pictures
    arrays = (pictures.offsets, pictures.lengths, near.labels, near.splits["train"])
    found["arrays_mb"] = sum(array.nbytes for array in arrays) / 1e6
    starts = np.array(pictures.starts[:-1], np.int64)
    far = Data(near.spec, pictures, near.labels, near.classes, near.splits, shards=starts)
    for name, data in (("near", near), ("far", far)):
        shown(data, data.splits["train"], 0, 0)
        with timed(found, f"order_{name}"):
            places = shown(data, data.splits["train"], 0, 1)
            if data.shards is not None:
                gathered(places, 1024)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=10_000_000)
    parser.add_argument("--out", type=Path, default=Path("results/epochstart.json"))
    parser.add_argument("--once", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.once:
        print(json.dumps(once(args.once)))
        return
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), args.pictures)
        command = [sys.executable, __file__, "--once", folder]
        rows = [json.loads(subprocess.check_output(command)) for _ in range(REPEATS + 1)][1:]
    measured = {name: spread([row[name] for row in rows]) for name in rows[0]}
    write(args.out, {"what": "indexes and orders of shards", "pictures": args.pictures, "shards": SHARDS, **measured})


if __name__ == "__main__":
    main()

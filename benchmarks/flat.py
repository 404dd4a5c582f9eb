"""Memory of a loader over many epochs: does it stay where it is?

    python benchmarks/flat.py [--pictures 100000] [--epochs 20] [--out results/flat.json]

So many small JPEGs in the tars of `resnet shard`, read, decoded and augmented in an order of their own in each epoch,
two threads, batches of 256. After each epoch the resident memory of the process is taken.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

import numpy as np
from PIL import Image

from common import write
from resnetkit import sharding
from resnetkit.data.loader import Reader, training_batches
from resnetkit.data.source import open_data
from resnetkit.data.transforms import Preprocess
from resnetkit.engines.worker import memory
from resnetkit.recipe import Augment

SIZE = 16
CLASSES = 10


def pictures(folder: Path, n: int) -> Path:
    """n JPEGs of noise in class folders."""
    noise = np.random.default_rng(0).integers(0, 256, (CLASSES * 10, SIZE, SIZE, 3), dtype=np.uint8)
    for i in range(n):
        path = folder / "train" / str(i % CLASSES) / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise[i % len(noise)]).save(path, quality=80)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--work", type=Path, default=Path("runs/flat"))
    parser.add_argument("--out", type=Path, default=Path("results/flat.json"))
    args = parser.parse_args()
    shutil.rmtree(args.work, ignore_errors=True)
    *_, done = sharding.shard(pictures(args.work / "source", args.pictures), args.work / "shards", shard_mb=16)
    assert isinstance(done, sharding.Sharded)
    data = open_data(args.work / "shards")
    preprocess = Preprocess(SIZE, "shorter", SIZE, "bilinear", 3, "RGB", (0.5,) * 3, (0.25,) * 3, True)
    reader = Reader(data, preprocess, threads=2)
    resident, seconds = [], []
    for epoch in range(args.epochs):
        begin = time.perf_counter()
        batches = training_batches(
            reader, data.splits["train"], Augment(crop="pad", pad=2), seed=0, epoch=epoch, batch=256
        )
        assert sum(1 for _ in batches) == args.pictures // 256
        resident.append(memory()["VmRSS"])
        seconds.append(round(time.perf_counter() - begin, 2))
    write(
        args.out,
        {
            "what": "resident memory of a process after each epoch of a loader",
            "pictures": args.pictures,
            "epochs": args.epochs,
            "shards": done.shards,
            "ratio": resident[-1] / resident[1],
            "resident_mb": [round(each / 1e6, 1) for each in resident],
            "seconds": seconds,
        },
    )
    shutil.rmtree(args.work)


if __name__ == "__main__":
    main()

"""Pictures from a far store, in the order of training: with and without saying beforehand which ones will be read.

    python benchmarks/ahead.py [--out results/ahead.json]

Shards of 32 MiB in moto's S3 on this machine, asked through a proxy in a process of its own, which answers 100 ms
later. Their pictures are small JPEGs with zeros behind them, 110 kB each, so decoding takes little. One epoch by two
threads in batches of 256, from an empty cache on disk, `loader.foretold` at work or not, in turns; MB of pictures a
second.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
from PIL import Image

from common import spread, write
from remote import WAIT, delayed
from resnetkit.data.loader import Reader, training_batches
from resnetkit.data.remote import RemoteBlobs
from resnetkit.data.source import open_data
from resnetkit.data.transforms import Preprocess
from resnetkit.recipe import Augment

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from store_server import CREDENTIALS, moto, upload

SHARDS, EACH, BYTES, BATCH, THREADS, REPEATS = 32, 300, 110_000, 256, 2, 5


def shard(number: int) -> bytes:
    """A tar of pictures of two classes."""
    out, dice = io.BytesIO(), np.random.default_rng(number)
    with tarfile.open(fileobj=out, mode="w") as tar:
        for k in range(EACH):
            picture = io.BytesIO()
            Image.fromarray(dice.integers(256, size=(32, 32, 3), dtype=np.uint8)).save(picture, "JPEG")
            for name, data in ((f"{k}.jpg", picture.getvalue().ljust(BYTES, b"\0")), (f"{k}.cls", b"%d" % (k % 2))):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def epoch(url: str, *, foretold: bool) -> float:
    """MB/s of the first epoch."""
    with tempfile.TemporaryDirectory() as home:
        os.environ["XDG_CACHE_HOME"] = home
        data = open_data(url)
        with tempfile.TemporaryDirectory() as empty:  # the blocks that indexing has fetched are not at hand
            os.environ["XDG_CACHE_HOME"] = empty
            blobs = RemoteBlobs([data.pictures.blobs.name(k) for k in range(SHARDS)], cache=Path(empty), limit=16 << 30)
            sizes = [blobs.size(k) for k in range(SHARDS)]
            data.pictures.blobs = blobs
            reader = Reader(
                data,
                Preprocess(32, "shorter", 32, "bilinear", 3, "RGB", (0.5,) * 3, (0.25,) * 3, True),
                threads=THREADS,
            )
            with patch.object(RemoteBlobs, "soon", RemoteBlobs.soon if foretold else lambda *_: None):
                begin = time.perf_counter()
                batches = training_batches(reader, data.used(), Augment(crop="none"), seed=0, epoch=0, batch=BATCH)
                shown = sum(len(batch.labels) for batch in batches)
                seconds = time.perf_counter() - begin
        assert sum(sizes) > shown * BYTES
    return shown * BYTES / seconds / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/ahead.json"))
    out = parser.parse_args().out
    os.environ.update(CREDENTIALS)
    here, there = multiprocessing.Pipe()
    rows = []
    with moto() as address:
        upload(f"{address}/bucket")
        for number in range(SHARDS):
            upload(f"{address}/bucket/train-{number:02}.tar", shard(number))
        way = multiprocessing.get_context("spawn").Process(target=delayed, args=(address, there))
        way.start()
        os.environ["AWS_ENDPOINT_URL"] = here.recv()
        for repeat in range(REPEATS):
            turns = (True, False) if repeat % 2 else (False, True)
            found = {
                foretold: epoch(f"s3://bucket/train-{{00..{SHARDS - 1}}}.tar", foretold=foretold) for foretold in turns
            }
            rows.append({"foretold": found[True], "as they come": found[False]})
            print(rows[-1], file=sys.stderr, flush=True)
        here.send("end")
        way.join()
    write(
        out,
        {
            "what": f"MB/s of pictures from a store that answers in {1000 * WAIT:.0f} ms: {THREADS} threads, an epoch",
            "mb_per_s": {name: spread([row[name] for row in rows]) for name in rows[0]},
            "foretold_to_as_they_come": spread([row["foretold"] / row["as they come"] for row in rows]),
            "megabytes": round(SHARDS * EACH * BYTES / 1e6),
            "repeats": rows,
        },
    )


if __name__ == "__main__":
    main()

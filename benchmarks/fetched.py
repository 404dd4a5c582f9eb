"""How much several machines fetch from a store in an epoch, counted from the order alone; nothing is read.

    python benchmarks/fetched.py [--out results/fetched.json]

ImageNet's 1,281,167 pictures of 110 kB in shards of 256 MiB, read in blocks of 4 MiB, each machine its part of each
batch of 8,192. A machine fetches a block once, as it keeps what it has fetched until the end of the epoch; the pictures
themselves are 1. "windows" is the order of `loader.windowed`, and "gathered" the one that training takes, in which
the pictures of a batch stand as they do in the pool.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from common import write
from resnetkit.data.loader import WINDOW, gathered, windowed
from resnetkit.data.pictures import Indices
from resnetkit.stores import BLOCK

PICTURES, BYTES, SHARD, BATCH = 1_281_167, 110_000, 256 << 20, 8192
MACHINES = (1, 2, 8, 64)


def fetched(places: Indices, machines: int) -> float:
    """Bytes of the blocks of all machines, against those of the pictures."""
    whole = len(places) // BATCH * BATCH
    shard, within = np.divmod(places[:whole], SHARD // BYTES)
    block = shard * (SHARD // BLOCK) + within * BYTES // BLOCK
    parts = block.reshape(-1, machines, BATCH // machines)
    blocks = sum(len(np.unique(parts[:, machine])) for machine in range(machines))
    return blocks * BLOCK / (whole * BYTES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/fetched.json"))
    out = parser.parse_args().out
    full, rest = divmod(PICTURES, SHARD // BYTES)
    places = windowed(0, 0, [SHARD // BYTES] * full + [rest], WINDOW)
    orders = {"windows": places, "gathered": gathered(places, BATCH)}
    write(
        out,
        {
            "what": "bytes fetched by all machines in an epoch, as multiples of the pictures' own",
            "pictures": PICTURES,
            "batch": BATCH,
            "window": WINDOW,
            "times": {name: {str(m): fetched(order, m) for m in MACHINES} for name, order in orders.items()},
        },
    )


if __name__ == "__main__":
    main()

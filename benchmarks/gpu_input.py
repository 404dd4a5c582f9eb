"""Does a GPU wait for its pictures: training from JPEGs beside training from one batch in its memory.

    python benchmarks/gpu_input.py FOLDER [--network resnet50] [--copies 40] [--out results/gpu/input-resnet50.json]

FOLDER has pictures of full size, which are taken `--copies` times. In turns, `--windows` times:

    read         batches of random crops, flipped by chance, and nothing else
    to device    the same, copied to where the network is
    train        our loop's steps over them
    in memory    our loop's steps over one batch that lies on the device

in pictures a second. The figure is train / in memory, window by window; 1 where nothing waits for pictures.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from common import spread, write
from gpu_step import OnDevice, wait
from resnetkit.data.loader import Batch, default_threads, training_batches
from resnetkit.loop import Loop, determinism
from throughput import Case, our_side, read_folder


def batches(loop: Loop) -> Iterator[Batch]:
    """Those of one epoch after the other."""
    for epoch in itertools.count():
        indices, augment = loop.data.splits["train"], loop.recipe.augment
        yield from training_batches(loop.reader, indices, augment, seed=0, epoch=epoch, batch=loop.batch)


def sides(loop: Loop) -> dict[str, Callable[[], object]]:
    """What is done with a batch, by name; each call takes the next one."""
    coming, device = batches(loop), loop.state.device
    first = next(coming)
    kept = OnDevice(first.pictures, first.labels, first.indices, kept=first.to(device))

    def step(batch: Batch) -> object:
        with determinism(loop.recipe):
            total = loop.take_step(batch, 0, 0.1)
        loop.state.step += 1
        return total

    return {
        "read": lambda: next(coming),
        "to device": lambda: next(coming).to(device),
        "train": lambda: step(next(coming)),
        "in memory": lambda: step(kept),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--copies", type=int, default=40)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--windows", type=int, default=5)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    case = Case(size=asked.size, batch=asked.batch, classes=1000, crop="resized", block=asked.steps)
    paths, labels = read_folder(asked.folder, case)
    with tempfile.TemporaryDirectory() as scratch:
        loop = our_side(paths * asked.copies, labels * asked.copies, case, asked.network, "auto", Path(scratch) / "run")
        loop.state.network.train()
        on_gpu, turns = loop.state.device.type == "cuda", sides(loop)

        def window(turn: Callable[[], object]) -> float:
            wait(on_gpu)
            begin = time.perf_counter()
            for _ in range(asked.steps):
                turn()
            wait(on_gpu)
            return asked.steps * asked.batch / (time.perf_counter() - begin)

        for turn in turns.values():
            window(turn)
        rows = [{name: window(turn) for name, turn in turns.items()} for _ in range(asked.windows)]
    write(
        asked.out or Path(f"results/gpu/input-{asked.network}.json"),
        {
            "what": f"{asked.network} from JPEGs cropped to {asked.size}x{asked.size}, batch {asked.batch}",
            "device": torch.cuda.get_device_name() if on_gpu else "cpu",
            "threads": default_threads(),
            "precision": loop.recipe.run.precision,
            "images_per_second": {name: spread([row[name] for row in rows]) for name in turns},
            "of_in_memory": spread([row["train"] / row["in memory"] for row in rows]),
        },
    )


if __name__ == "__main__":
    main()

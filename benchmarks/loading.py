"""Picture loading: RandomResizedCrop(224) and mirroring from plain JPEG files, two cores, against torch's DataLoader.

    python benchmarks/loading.py FOLDER [--out results/loading.json]

A  resnetkit: `Preprocess.load` and `augmented` in two threads.
B  what people write: `DataLoader(num_workers=2)` over Pillow's open, convert, crop, resize (bilinear) and transpose, to
   a uint8 tensor. The workers stay alive between repeats, so starting them is not counted.

Both read the same files in the same order with the same crop boxes, in batches of 32, with warm page cache. A and B
take turns; which of them begins alternates. The figure is the median of the ratios of the pairs.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from common import write
from resnetkit.data.transforms import DRAWS, FLIP, Preprocess, augmented, resized_crop_box
from resnetkit.recipe import Augment

SIZE = 224
BATCH = 32
WORKERS = 2
REPEATS = 7
PASSES = 4  # over the folder, in each repeat
AUGMENT = Augment(crop="resized", flip=True)
PREPROCESS = Preprocess(
    SIZE, "shorter", 256, "bilinear", 3, "RGB", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), exif=False
)

Pixels = NDArray[np.uint8]
Draws = NDArray[np.float64]


def ours(path: Path, draws: Draws) -> Pixels:
    return augmented(PREPROCESS.load(path.read_bytes()), PREPROCESS, AUGMENT, draws)


def with_pillow(data: bytes, draws: Draws) -> Pixels:
    with Image.open(io.BytesIO(data)) as opened:
        image = opened.convert("RGB")
    box = resized_crop_box(image.height, image.width, AUGMENT.scale, AUGMENT.ratio, draws.tolist())
    image = image.crop(box).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    if draws[FLIP] < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(image)


class Pictures(Dataset[Tensor]):
    """B's data set; an index is a position in the whole run, so each pass has draws of its own."""

    def __init__(self, paths: list[Path], draws: Draws) -> None:
        self.paths, self.draws = paths, draws

    def __getitem__(self, position: int) -> Tensor:
        return torch.from_numpy(with_pillow(self.paths[position % len(self.paths)].read_bytes(), self.draws[position]))


class Positions(Sampler[int]):
    """The positions that the next iteration of the loader takes."""

    def __init__(self) -> None:
        self.now = range(0)

    def __iter__(self) -> Iterator[int]:
        return iter(self.now)

    def __len__(self) -> int:
        return len(self.now)


def time_ours(pool: ThreadPoolExecutor, paths: list[Path], draws: Draws, positions: range) -> float:
    def batch(start: int) -> Tensor:
        part = positions[start : start + BATCH]
        out = np.empty((len(part), SIZE, SIZE, 3), np.uint8)
        for row, position in enumerate(part):
            out[row] = ours(paths[position % len(paths)], draws[position])
        return torch.from_numpy(out)

    begin = time.perf_counter()
    seen = sum(len(pictures) for pictures in pool.map(batch, range(0, len(positions), BATCH)))
    seconds = time.perf_counter() - begin
    assert seen == len(positions)
    return seen / seconds


def time_loader(loader: DataLoader[Tensor], sampler: Positions, positions: range) -> float:
    sampler.now = positions
    begin = time.perf_counter()
    seen = sum(len(pictures) for pictures in loader)
    seconds = time.perf_counter() - begin
    assert seen == len(positions)
    return seen / seconds


def differences(paths: list[Path], draws: Draws) -> dict[str, float]:
    """In levels of 255, over all pictures with their first crop box."""
    largest, total = 0, 0.0
    for path, row in zip(paths, draws, strict=False):
        off = np.abs(ours(path, row).astype(int) - with_pillow(path.read_bytes(), row).astype(int))
        largest, total = max(largest, int(off.max())), total + float(off.mean())
    return {"largest": largest, "mean": total / len(paths)}


def measure(paths: list[Path]) -> list[dict[str, float]]:
    """Pictures a second of A and B, repeat by repeat, after one unmeasured round of each."""
    n = len(paths) * PASSES
    draws = np.random.Generator(np.random.Philox(0)).random((n * (REPEATS + 1), DRAWS))
    sampler = Positions()
    loader = DataLoader(Pictures(paths, draws), BATCH, sampler=sampler, num_workers=WORKERS, persistent_workers=True)
    time_loader(loader, sampler, range(n))  # first, so that the workers are forked before there are threads
    rows = []
    with ThreadPoolExecutor(WORKERS) as pool:
        time_ours(pool, paths, draws, range(n))
        for repeat in range(1, REPEATS + 1):
            positions = range(repeat * n, (repeat + 1) * n)
            turns: list[tuple[str, Callable[[], float]]] = [
                ("resnetkit", partial(time_ours, pool, paths, draws, positions)),
                ("dataloader", partial(time_loader, loader, sampler, positions)),
            ]
            rates = {name: turn() for name, turn in turns[:: 1 if repeat % 2 else -1]}
            rows.append({**rates, "ratio": rates["resnetkit"] / rates["dataloader"]})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="JPEG files, in folders or not")
    parser.add_argument("--out", type=Path, default=Path("results/loading.json"))
    args = parser.parse_args()
    paths = sorted(path for path in args.folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not paths:
        sys.exit(f"{args.folder}: no .jpg or .jpeg files in it")
    draws = np.random.Generator(np.random.Philox(1)).random((len(paths), DRAWS))
    rows = measure(paths)
    ratios = [row["ratio"] for row in rows]
    result = {
        "what": f"RandomResizedCrop({SIZE}) and mirroring from JPEG files: resnetkit, {WORKERS} threads, against "
        f"DataLoader with Pillow, {WORKERS} workers",
        "ratio": {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)},
        "pictures": len(paths),
        "pictures_per_repeat": len(paths) * PASSES,
        "mean_kilobytes": round(sum(path.stat().st_size for path in paths) / len(paths) / 1000, 1),
        "pictures_per_second": {
            name: statistics.median(row[name] for row in rows) for name in ("resnetkit", "dataloader")
        },
        "repeats": rows,
        "levels_from_pillow": differences(paths, draws),
    }
    write(args.out, result)


if __name__ == "__main__":
    main()

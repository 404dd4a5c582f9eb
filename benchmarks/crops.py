"""Random resized crops of 224 pixels from full-size JPEGs: per core, and through the loader on two threads.

    pip install opencv-python-headless webdataset       # to compare with; nothing of resnetkit needs them
    python benchmarks/crops.py FOLDER [--out results/crops.json]

Per core: bytes in memory to pixels in a batch, one thread, its CPU time. Methods take turns every 25 pictures, in an
order drawn anew, all with the same boxes and mirrorings.

native       resnetkit with resnetkit-native
wheels       resnetkit without it: simplejpeg, cykooz-resizer
pillow       open, convert, crop, resize, transpose: torchvision's order
opencv_area  simplejpeg, then OpenCV's resize with INTER_AREA, and its flip

Loaders: files in the page cache to batches of 32, two threads or two worker processes, wall time; in turns, in an order
drawn anew. `dataloader` is torch's with Pillow, `webdataset` WebDataset's with the same Pillow code over tar shards.

Figures are medians of the ratios within a repeat.
"""

from __future__ import annotations

import argparse
import random
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import resnetkit_native
import simplejpeg
import torch
import webdataset
from torch import Tensor
from torch.utils.data import DataLoader

from common import spread, write
from loading import AUGMENT, BATCH, PREPROCESS, SIZE, WORKERS, Pictures, Pixels, Positions, time_loader, with_pillow
from resnetkit.data import decode
from resnetkit.data.loader import Reader, training_batches
from resnetkit.data.pictures import Data, Files
from resnetkit.data.transforms import DRAWS, FLIP, augmented, resized_crop_box

TURN = 25  # pictures
Method = Callable[[bytes, np.ndarray], Pixels]


def native(data: bytes, draws: np.ndarray) -> Pixels:
    return augmented(PREPROCESS.open(data), PREPROCESS, AUGMENT, draws)


def wheels(data: bytes, draws: np.ndarray) -> Pixels:
    return augmented(PREPROCESS.load(data), PREPROCESS, AUGMENT, draws)


def opencv_area(data: bytes, draws: np.ndarray) -> Pixels:
    picture = simplejpeg.decode_jpeg(data, "RGB")
    height, width = picture.shape[:2]
    left, top, right, bottom = resized_crop_box(height, width, AUGMENT.scale, AUGMENT.ratio, draws.tolist())
    small = cv2.resize(picture[top:bottom, left:right], (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    return cv2.flip(small, 1) if draws[FLIP] < 0.5 else small


METHODS: dict[str, Method] = {"native": native, "wheels": wheels, "pillow": with_pillow, "opencv_area": opencv_area}


def per_core(files: list[bytes], repeats: int) -> dict[str, Any]:
    """Milliseconds a picture of each method, repeat by repeat, after one unmeasured round, and their ratios."""
    dice = random.Random(0)
    out = np.empty((SIZE, SIZE, 3), np.uint8)
    rows = []
    for repeat in range(repeats + 1):
        draws = np.random.Generator(np.random.Philox(repeat)).random((len(files), DRAWS))
        seconds = dict.fromkeys(METHODS, 0.0)
        for start in range(0, len(files), TURN):
            for name in dice.sample(list(METHODS), len(METHODS)):
                method, begin = METHODS[name], time.thread_time()
                for data, row in zip(files[start : start + TURN], draws[start : start + TURN], strict=True):
                    out[:] = method(data, row)
                seconds[name] += time.thread_time() - begin
        rows.append({name: 1000 * spent / len(files) for name, spent in seconds.items()})
    rows = rows[1:]

    def ratio(ours: str, other: str) -> dict[str, float]:
        return spread([row[other] / row[ours] for row in rows])

    return {
        "milliseconds": {name: spread([row[name] for row in rows]) for name in METHODS},
        "native_to_pillow": ratio("native", "pillow"),
        "native_to_opencv_area": ratio("native", "opencv_area"),
        "native_to_wheels": ratio("native", "wheels"),
        "wheels_to_pillow": ratio("wheels", "pillow"),
        "repeats": rows,
    }


@contextmanager
def without_native() -> Iterator[None]:
    """As on a machine where it is not installed."""
    installed, decode.resnetkit_native = decode.resnetkit_native, None
    try:
        yield
    finally:
        decode.resnetkit_native = installed


class Sharded:
    """WebDataset's loader over tar shards of the same files; each pass has draws of its own, by key."""

    def __init__(self, paths: list[Path], folder: Path, passes: int) -> None:
        for shard in range(2 * WORKERS):
            with tarfile.open(folder / f"{shard}.tar", "w") as archive:
                for index in range(shard, len(paths), 2 * WORKERS):
                    archive.add(paths[index], f"{index:06}.jpg")
        self.seen, self.passes = len(paths) * passes, passes
        urls = [str(folder / f"{shard}.tar") for shard in range(2 * WORKERS)]
        data = webdataset.WebDataset(urls, shardshuffle=False).repeat(passes).map(self.made)
        self.loader = DataLoader(data.batched(BATCH), None, num_workers=WORKERS, persistent_workers=True)

    @staticmethod
    def made(sample: dict[str, Any]) -> tuple[Tensor]:
        draws = np.random.Generator(np.random.Philox(int(sample["__key__"]))).random(DRAWS)
        return (torch.from_numpy(with_pillow(sample["jpg"], draws)),)

    def rate(self) -> float:
        begin = time.perf_counter()
        seen = sum(len(pictures) for (pictures,) in self.loader)
        assert seen == self.seen, (seen, self.seen)
        return seen / (time.perf_counter() - begin)


def time_ours(data: Data, passes: int, epoch: int) -> float:
    """Pictures a second of `training_batches`; whole batches only, so an epoch is the folder several times."""
    reader = Reader(data, PREPROCESS, threads=WORKERS)
    begin = time.perf_counter()
    indices = np.tile(np.arange(len(data)), passes)
    batches = training_batches(reader, indices, AUGMENT, seed=0, epoch=epoch, batch=BATCH)
    seen = sum(len(batch.to("cpu")[0]) for batch in batches)
    return seen / (time.perf_counter() - begin)


def loaders(paths: list[Path], passes: int, repeats: int) -> dict[str, Any]:
    """Pictures a second of each loader, repeat by repeat, after one unmeasured round, and the ratios of native."""
    n = len(paths) * passes
    draws = np.random.Generator(np.random.Philox(0)).random((n, DRAWS))
    sampler, dice = Positions(), random.Random(1)
    loader = DataLoader(Pictures(paths, draws), BATCH, sampler=sampler, num_workers=WORKERS, persistent_workers=True)
    data = Data("", Files(Path(), [str(path) for path in paths]), np.zeros(len(paths), np.int64), ("",), {})
    with tempfile.TemporaryDirectory() as folder:
        sharded = Sharded(paths, Path(folder), passes)
        time_loader(loader, sampler, range(n))  # both first, so that workers are forked before there are threads
        sharded.rate()
        rows = []
        for repeat in range(repeats):

            def wheels_rate(epoch: int = repeat) -> float:
                with without_native():
                    return time_ours(data, passes, epoch)

            turns: dict[str, Callable[[], float]] = {
                "native": partial(time_ours, data, passes, repeat),
                "wheels": wheels_rate,
                "dataloader": partial(time_loader, loader, sampler, range(n)),
                "webdataset": sharded.rate,
            }
            rows.append({name: turns[name]() for name in dice.sample(list(turns), len(turns))})
    result: dict[str, Any] = {"pictures_per_second": {name: spread([row[name] for row in rows]) for name in turns}}
    for ours in ("native", "wheels"):
        for other in ("dataloader", "webdataset"):
            result[f"{ours}_to_{other}"] = spread([row[ours] / row[other] for row in rows])
    return {**result, "repeats": rows}


def differences(files: list[bytes], reference: Method) -> dict[str, float]:
    """How far native is from the reference, in levels of 255, over all pictures with one box each."""
    draws = np.random.Generator(np.random.Philox(1)).random((len(files), DRAWS))
    off = [np.abs(native(d, row).astype(int) - reference(d, row)) for d, row in zip(files, draws, strict=True)]
    return {"largest": int(max(one.max() for one in off)), "mean": float(np.mean([one.mean() for one in off]))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="JPEG files, in folders or not")
    parser.add_argument("--out", type=Path, default=Path("results/crops.json"))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--passes", type=int, default=2, help="over the folder, in each repeat of a loader")
    args = parser.parse_args()
    paths = sorted(path for path in args.folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not paths:
        sys.exit(f"{args.folder}: no .jpg or .jpeg files in it")
    cv2.setNumThreads(1)
    files = [path.read_bytes() for path in paths]
    result = {
        "what": f"RandomResizedCrop({SIZE}) and mirroring from full-size JPEGs",
        "pictures": len(paths),
        "mean_kilobytes": round(sum(map(len, files)) / len(files) / 1000, 1),
        "mean_pixels": round(float(np.mean([np.prod(resnetkit_native.size(data)) for data in files]))),
        "loaders": loaders(paths, args.passes, args.repeats),  # first: its workers are forked before there are threads
        "per_core": per_core(files, args.repeats),
        "levels": {"to_wheels": differences(files, wheels), "to_pillow": differences(files, with_pillow)},
        "compared": {name: version(name) for name in ("resnetkit-native", "opencv-python-headless", "webdataset")},
    }
    write(args.out, result)


if __name__ == "__main__":
    main()

"""Training throughput against a plain PyTorch loop on the same machine, side by side.

    python benchmarks/throughput.py FOLDER [--network resnet20-cifar|resnet50]

FOLDER   pictures as folders of classes (resnet20-cifar: 32x32 pictures; resnet50: any JPEG files, in folders or not)

A  resnetkit: its own loop (`Loop.take_step` over `training_batches`) with what the recipe resolves to on this machine.
B  what people write: eager, NCHW, fp32, torch.optim.SGD, DataLoader with Pillow and two workers, the same network
   class, the same augmentation, batch and cross-entropy.

C  A in fp32, which tells what bf16 has to do with it; the same as A on a machine without bf16 instructions.

They take turns, step block by step block, every other time in reverse. One block of each comes first, unmeasured. The
figures are the medians of the ratios to B within a turn.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from common import write
from resnetkit import checkpoint
from resnetkit.data.audit import audit
from resnetkit.data.loader import default_threads, training_batches
from resnetkit.data.pictures import Data, Files
from resnetkit.loop import Loop, determinism
from resnetkit.model import ResNet, architecture
from resnetkit.recipe import Augment, Model, Optim, Recipe, Run, Schedule
from resnetkit.recipe import Data as DataChoices
from resnetkit.resolve import resolve
from resnetkit.training import make_loop

REPEATS = 7
WORKERS = 2
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Case:
    """A network, its pictures, and how many steps make a block."""

    size: int
    batch: int
    classes: int
    crop: str
    block: int


CASES = {
    "resnet20-cifar": Case(size=32, batch=128, classes=10, crop="pad", block=30),
    "resnet50": Case(size=224, batch=16, classes=1000, crop="resized", block=4),
}


class Pictures(Dataset[tuple[Tensor, int]]):
    """B's data set: open, convert, crop, flip, to a normalised float tensor."""

    def __init__(self, paths: list[Path], labels: list[int], case: Case) -> None:
        self.paths, self.labels, self.case = paths, labels, case

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with Image.open(self.paths[index]) as opened:
            image = opened.convert("RGB")
        image = self.pad_crop(image) if self.case.crop == "pad" else self.resized_crop(image)
        if torch.rand(()) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
        return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None], self.labels[index]

    def pad_crop(self, image: Image.Image) -> Image.Image:
        padded = Image.new("RGB", (self.case.size + 8, self.case.size + 8))
        padded.paste(image, (4, 4))
        left, top = torch.randint(9, (2,)).tolist()
        return padded.crop((left, top, left + self.case.size, top + self.case.size))

    def resized_crop(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        for _ in range(10):
            area = width * height * float(torch.empty(()).uniform_(0.25, 1))
            ratio = float(torch.empty(()).uniform_(-0.2877, 0.2877).exp())
            w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
            if w <= width and h <= height:
                break
        else:
            w = h = min(width, height)
        left, top = int(torch.randint(width - w + 1, ())), int(torch.randint(height - h + 1, ()))
        box = (left, top, left + w, top + h)
        return image.resize((self.case.size, self.case.size), Image.Resampling.BILINEAR, box=box)


def plain_loop(paths: list[Path], labels: list[int], case: Case, network: str) -> Iterator[None]:
    """B, a step each time it is asked."""
    torch.manual_seed(0)
    model = ResNet(architecture(network, classes=case.classes)).train()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    pictures = Pictures(paths, labels, case)
    loader = DataLoader(
        pictures, case.batch, shuffle=True, drop_last=True, num_workers=WORKERS, persistent_workers=True
    )
    while True:
        for x, y in loader:
            sgd.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            sgd.step()
            loss.item()
            yield


def our_loop(loop: Loop, case: Case) -> Iterator[None]:
    """A, a step each time it is asked."""
    loop.state.network.train()
    for epoch in itertools.count():
        indices = loop.data.splits["train"]
        for batch in training_batches(loop.reader, indices, loop.recipe.augment, seed=0, epoch=epoch, batch=case.batch):
            with determinism(loop.recipe):
                loss = loop.take_step(batch, epoch, 0.1)
                loss.item()
            loop.state.step += 1
            yield


def our_side(paths: list[Path], labels: list[int], case: Case, network: str, precision: Any, folder: Path) -> Loop:
    """A's or C's loop, made as `resnet train` makes it."""
    names = tuple(f"class {index}" for index in range(case.classes))
    everything = np.arange(len(paths))
    files = Files(Path(), [str(path) for path in paths])
    data = Data("pictures", files, np.array(labels, np.int64), names, {"train": everything})
    recipe = Recipe(
        model=Model(arch=network),
        data=DataChoices(size=case.size, channels=3),
        augment=replace(Augment(), crop="pad" if case.crop == "pad" else "resized"),
        optim=Optim(lr=0.1, batch=case.batch),
        schedule=Schedule(steps=1_000_000, warmup_steps=0),
        run=Run(precision=precision),
    )
    seen = audit(data, threads=default_threads())
    resolved = resolve(recipe, data, seen, None)
    (folder / checkpoint.FOLDER).mkdir(parents=True)
    return make_loop(folder, resolved, data, seen)


def block_of(steps: Iterator[None], case: Case) -> Callable[[], float]:
    """Pictures a second over one block."""

    def run() -> float:
        begin = time.perf_counter()
        for _ in range(case.block):
            next(steps)
        return case.block * case.batch / (time.perf_counter() - begin)

    return run


def read_folder(folder: Path, case: Case) -> tuple[list[Path], list[int]]:
    """Picture files, with the folder they are in, or a made-up number, for a label."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not paths:
        sys.exit(f"{folder}: no pictures in it")
    parents = sorted({path.parent for path in paths})
    labels = [parents.index(path.parent) if len(parents) > 1 else i for i, path in enumerate(paths)]
    return paths, [label % case.classes for label in labels]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--network", choices=CASES, default="resnet20-cifar")
    args = parser.parse_args()
    case = CASES[args.network]
    paths, labels = read_folder(args.folder, case)
    with tempfile.TemporaryDirectory() as scratch:
        theirs = plain_loop(paths, labels, case, args.network)
        next(theirs)  # first, so that the workers are forked before there are other threads
        ours, fp32 = (
            our_side(paths, labels, case, args.network, precision, Path(scratch) / precision)
            for precision in ("auto", "fp32")
        )
        sides = {
            "resnetkit": block_of(our_loop(ours, case), case),
            "resnetkit fp32": block_of(our_loop(fp32, case), case),
            "plain": block_of(theirs, case),
        }
        for run in sides.values():
            run()
        rows = [
            {name: round(run(), 2) for name, run in list(sides.items())[:: 1 if repeat % 2 else -1]}
            for repeat in range(REPEATS)
        ]
    write(
        Path("results") / f"throughput-{args.network}.json",
        {
            "what": f"training {args.network} at {case.size}x{case.size}, batch {case.batch}: resnetkit's loop "
            f"against a plain eager NCHW fp32 loop with DataLoader and Pillow, {WORKERS} workers",
            "ratio": ratio(rows, "resnetkit"),
            "ratio_fp32": ratio(rows, "resnetkit fp32"),
            "precision": ours.recipe.run.precision,
            "images_per_second": {name: statistics.median(row[name] for row in rows) for name in sides},
            "repeats": rows,
        },
    )


def ratio(rows: list[dict[str, float]], name: str) -> dict[str, float]:
    """Of one side to the plain loop, turn by turn."""
    found = [row[name] / row["plain"] for row in rows]
    return {"median": statistics.median(found), "lowest": min(found), "highest": max(found)}


if __name__ == "__main__":
    main()

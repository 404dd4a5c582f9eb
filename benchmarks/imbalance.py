"""Classes of unlike size: does a balanced sampler, a class weight or logit adjustment help the small ones?

    python benchmarks/imbalance.py DATA [--out results/imbalance.json]

DATA     a folder with train/<class> and test/<class>, such as CIFAR-10's pictures. Of class c of ten, in the order of
         their names, LARGEST * RATIO ** (-c / 9) training pictures are taken (the long tail of arXiv 1901.05555), and
         TESTED test pictures of every class.

All arms have one recipe and differ in one key. Every seed draws other training pictures and another start; within a
seed all arms have the same. Nothing is chosen on the pictures that are scored.
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

import resnetkit
from common import student, write
from resnetkit.recipe_file import to_dict, with_settings
from resnetkit.runs import read_recipe
from resnetkit.shipped import shipped

LARGEST, RATIO, TESTED = 500, 50, 200
SETTINGS = (
    "model.arch=resnet8-cifar",
    "data.size=16",
    "augment.crop=pad",
    "augment.pad=2",
    "schedule.epochs=30",
    "optim.batch=64",
    "optim.lr=0.1",
    "run.precision=fp32",
    "run.eval_epochs=30",
)
ARMS = {
    "as they come": (),
    "balanced sampler": ("data.sampling=balanced",),
    "class weights, square root": ("optim.class_weights=0.5",),
    "class weights": ("optim.class_weights=1",),
    "logit adjustment": ("optim.logit_adjustment=1",),
}
SEEDS = (0, 1, 2)


def long_tailed(data: Path, folder: Path, seed: int) -> list[int]:
    """Links to the pictures of one seed; how many training pictures each class has."""
    dice, counts = np.random.default_rng(seed), []
    for number, name in enumerate(sorted(path.name for path in (data / "train").iterdir())):
        wanted = {"train": round(LARGEST * RATIO ** (-number / 9)), "test": TESTED}
        counts.append(wanted["train"])
        for split, many in wanted.items():
            (folder / split / name).mkdir(parents=True)
            files = sorted((data / split / name).iterdir())
            for index in dice.permutation(len(files))[:many].tolist():
                (folder / split / name / files[index].name).symlink_to(files[index].resolve())
    return counts


def shares(result: resnetkit.Result) -> dict[str, float]:
    """Balanced accuracy, and the mean recall of the three largest and of the three smallest classes."""
    recalls = [row.top1 for row in sorted(result.per_class, key=lambda row: row.name)]
    return {
        "balanced_accuracy": result.balanced_accuracy,
        "largest_three": statistics.fmean(recalls[:3]),
        "smallest_three": statistics.fmean(recalls[-3:]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("results/imbalance.json"))
    args = parser.parse_args()
    begin = time.perf_counter()
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    with tempfile.TemporaryDirectory() as scratch:
        for seed in SEEDS:
            data = Path(scratch) / f"data-{seed}"
            counts = long_tailed(args.data, data, seed)
            for arm, settings in ARMS.items():
                recipe = with_settings(shipped("small"), [*SETTINGS, *settings, f"run.seed={seed}"])
                done = resnetkit.train(data, recipe=recipe, out=Path(scratch) / f"{arm} {seed}")
                found[arm].append(shares(done.result))
                print(f"{arm}, seed {seed}: {found[arm][-1]}", file=sys.stderr, flush=True)
        used: dict[str, Any] = to_dict(read_recipe(Path(scratch) / f"as they come {SEEDS[0]}"))
    plain = found["as they come"]
    write(
        args.out,
        {
            "what": "ResNet-8 on long-tailed CIFAR-10 (recompressed) at 16x16: ways to make up for small classes",
            "command": "python benchmarks/imbalance.py cifar10",
            "counts": counts,
            "tested": TESTED * len(counts),
            "arms": {
                arm: {
                    "key": " ".join(ARMS[arm]),
                    **{name: statistics.fmean(row[name] for row in rows) for name in rows[0]},
                    "gain": statistics.fmean(gains(rows, plain)),
                    "gain_interval": student(gains(rows, plain))[1:] if arm != "as they come" else None,
                    "seeds": rows,
                }
                for arm, rows in found.items()
            },
            "interval": "95 %, Student's t over the seeds' differences in balanced accuracy from 'as they come'",
            "recipe": used,
            "seconds": round(time.perf_counter() - begin),
        },
    )


def gains(rows: list[dict[str, float]], plain: list[dict[str, float]]) -> list[float]:
    """Balanced accuracy beyond the plain arm, seed by seed."""
    return [row["balanced_accuracy"] - base["balanced_accuracy"] for row, base in zip(rows, plain, strict=True)]


if __name__ == "__main__":
    main()

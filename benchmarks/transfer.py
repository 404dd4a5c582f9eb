"""Does a network with published weights, trained further, beat the same network from scratch at the same budget?

    python benchmarks/transfer.py WEIGHTS DATA [--out results/transfer.json]

WEIGHTS  cifar10-resnet20.th (option A shortcuts, RGB / 255, ImageNet's mean and deviation)
DATA     a folder with train/<class> and val/<class>; its first ten classes are taken. Those of Tiny ImageNet are
         animals, dogs and a cat among them as in CIFAR-10: a transfer to pictures of a like kind.

Both arms have one recipe, "small" with the SETTINGS below, and differ in the start alone. Each gets the best of the
same learning rates, chosen with another seed on a fifth of the training pictures. What is scored, the pictures of val/,
is seen once at the end of each run and decides nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import resnetkit
from common import student, write
from published import PREPROCESS
from resnetkit.recipe_file import to_dict, with_settings
from resnetkit.runs import read_recipe
from resnetkit.shipped import shipped

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CLASSES = 10
EPOCHS = 3
SETTINGS = (
    "model.arch=resnet20-cifar",
    "model.zero_gamma=false",
    "data.size=32",
    f"schedule.epochs={EPOCHS}",
    "optim.batch=64",
    "run.precision=fp32",
    f"run.eval_epochs={EPOCHS}",
)
RATES = (0.01, 0.03, 0.1, 0.3)
CHOOSING_SEED = 100
SEEDS = (0, 1, 2)


class Arms:
    """The two starts, and a folder for their runs."""

    def __init__(self, scratch: Path, weights: Path) -> None:
        self.scratch, self.weights = scratch, {"from scratch": None, "fine-tuned": weights}

    def train(self, arm: str, data: Path, rate: float, seed: int) -> tuple[Path, resnetkit.Result]:
        """One run."""
        recipe = with_settings(shipped("small"), [*SETTINGS, f"optim.lr={rate}", f"run.seed={seed}"])
        out = self.scratch / f"{arm} {rate} {seed}"
        result = resnetkit.train(data, recipe=recipe, weights=self.weights[arm], out=out).result
        print(f"{arm}, learning rate {rate}, seed {seed}: {result}", file=sys.stderr, flush=True)
        return out, result


def measure(arms: Arms, choosing: Path, data: Path) -> dict[str, Any]:
    """Choose a learning rate for each arm, then train each with every seed."""
    grid = {arm: {r: arms.train(arm, choosing, r, CHOOSING_SEED)[1].top1 for r in RATES} for arm in arms.weights}
    chosen = {arm: max(scores, key=scores.__getitem__) for arm, scores in grid.items()}
    rows = []
    for seed in SEEDS:
        runs = {arm: arms.train(arm, data, chosen[arm], seed) for arm in arms.weights}
        row: dict[str, Any] = {"seed": seed, "top1": {arm: result.top1 for arm, (_, result) in runs.items()}}
        (a, _), (b, _) = runs.values()
        row["compared"] = str(resnetkit.compare(a, b, data, split="val"))
        rows.append(row | {"n": runs["fine-tuned"][1].n})
    differences = [row["top1"]["fine-tuned"] - row["top1"]["from scratch"] for row in rows]
    mean, *interval = student(differences)
    return {
        "top1_mean": {arm: statistics.fmean(row["top1"][arm] for row in rows) for arm in arms.weights},
        "top1_sd": {arm: statistics.stdev(row["top1"][arm] for row in rows) for arm in arms.weights},
        "difference": mean,
        "difference_interval": interval,
        "interval": "95 %, Student's t over the differences of the seeds; fine-tuned minus from scratch",
        "seeds": rows,
        "learning_rate": chosen,
        "learning_rates_tried": {arm: {str(r): top1 for r, top1 in found.items()} for arm, found in grid.items()},
        "learning_rates_chosen_on": f"a fifth of the training pictures kept back, seed {CHOOSING_SEED}",
        "recipe": to_dict(read_recipe(b)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("results/transfer.json"))
    args = parser.parse_args()
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        classes = sorted(path.name for path in (args.data / "train").iterdir())[:CLASSES]
        for split in ("train", "val"):
            (scratch / "data" / split).mkdir(parents=True)
            for name in classes:
                (scratch / "data" / split / name).symlink_to((args.data / split / name).resolve())
        start = scratch / "start.safetensors"
        arch = resnetkit.architecture("resnet20-cifar")
        resnetkit.import_weights(args.weights, arch=arch, classes=CIFAR10, preprocess=PREPROCESS, out=start)
        found = measure(Arms(scratch, start), scratch / "data" / "train", scratch / "data")
    write(
        args.out,
        {
            "what": f"ResNet-20 with published CIFAR-10 weights against the same from scratch, {EPOCHS} epochs",
            "command": "python benchmarks/transfer.py cifar10-resnet20.th tiny-imagenet-50",
            "classes": classes,
            **found,
            "settings": list(SETTINGS),
            "seconds": round(time.perf_counter() - begin),
        },
    )


if __name__ == "__main__":
    main()

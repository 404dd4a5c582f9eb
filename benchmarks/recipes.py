"""Every ImageNet recipe for a few hundred steps on small pictures: does it train, and how fast.

    python benchmarks/recipes.py FOLDER [--steps 200] [--out results/recipes.json]

FOLDER holds train/ and val/ with a folder for each class; in results/recipes.json ten classes of Tiny ImageNet,
pictures of 64 pixels. The recipes are made small as a user would, by settings: a ResNet-18, 64 pixels, batches of 32,
the learning rate of SGD in proportion to the batch, sizes in proportion to the input, and an EMA that forgets the
start in so few steps. All else is the recipe's. The losses are means of the first and of the last 20 steps, each
recipe's own; where pictures are mixed, accuracy on those held out says more. A few hundred steps show that a recipe
trains, not which is best: the long ones regularise for hundreds of epochs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import resnetkit
from common import write
from resnetkit.recipe import Recipe
from resnetkit.recipe_file import with_settings
from resnetkit.runs import read_log, read_steps
from resnetkit.shipped import recipes

SIDE, BATCH, WINDOW = 64, 32, 20


def small(recipe: Recipe, steps: int) -> list[str]:
    """The settings that make a recipe fit two slow cores."""
    batch, size = recipe.optim.batch, recipe.data.size
    assert isinstance(batch, int)
    assert isinstance(size, int)
    settings = {
        "model.arch": "resnet18",
        "model.stride": "auto",
        "model.stem_stride": 4,
        "data.size": SIDE,
        "optim.batch": BATCH,
        "optim.accumulate": 1,
        "schedule.steps": steps,
        "run.eval_epochs": 10**6,
        "run.precision": "fp32",
    }
    if recipe.optim.optimizer == "sgd":
        settings["optim.lr"] = round(float(recipe.optim.lr) * BATCH / batch, 6)
    if recipe.augment.sizes:
        sizes = [[share, round(side * SIDE / size / 8) * 8] for share, side in recipe.augment.sizes]
        settings["augment.sizes"] = json.dumps(sizes)
    if recipe.augment.crop == "scale":
        settings["augment.sides"] = json.dumps([round(side * SIDE / size) for side in recipe.augment.sides])
    if recipe.optim.ema:
        settings["optim.ema"] = 0.98
    return [f"{key}={value}" for key, value in settings.items()]


def measure(name: str, data: str, steps: int) -> dict[str, Any]:
    """One short run."""
    recipe = recipes()[name]
    settings = small(recipe, steps)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        begin = time.perf_counter()
        finished = resnetkit.train(data, recipe=with_settings(recipe, settings), out=run)
        seconds = time.perf_counter() - begin
        losses = [row[1] for row in read_steps(run)]
        speed = statistics.median(line["images_per_second"] for line in read_log(run))
    result = finished.result
    first, last = statistics.fmean(losses[:WINDOW]), statistics.fmean(losses[-WINDOW:])
    return {
        "settings": settings,
        "loss": recipe.optim.loss,
        "loss_first": round(first, 4),
        "loss_last": round(last, 4),
        "falls": last < first,
        "n": result.n,
        "correct": result.correct,
        "top1": result.top1,
        "top1_interval": result.top1_interval,
        "images_per_second": round(speed, 1),
        "seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="a folder with train/ and val/")
    parser.add_argument("--pictures", default="ten classes of Tiny ImageNet", help="what they are, in words")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--only", nargs="*", help="recipes to measure; what --out has of the others stays")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "recipes.json")
    args = parser.parse_args()
    names = args.only or [name for name in recipes() if name.startswith("imagenet-")]
    found = json.loads(args.out.read_text())["recipes"] if args.only and args.out.exists() else {}
    for name in names:
        found[name] = measure(name, args.data, args.steps)
        print(name, {key: value for key, value in found[name].items() if key != "settings"}, flush=True)
    ordered = {name: found[name] for name in recipes() if name in found}
    write(
        args.out,
        {
            "pictures": args.pictures,
            "steps": args.steps,
            "batch": BATCH,
            "threads": torch.get_num_threads(),
            "recipes": ordered,
        },
    )


if __name__ == "__main__":
    main()

"""Accuracy and time of a shipped recipe, over several seeds: the figures in the recipes' contracts.

    python benchmarks/accuracy.py digits FOLDER --seeds 5          FOLDER from examples/demo_pictures.py
    python benchmarks/accuracy.py fashion-mnist fashion-mnist:DIR
    python benchmarks/accuracy.py small FOLDER --name tiny-imagenet-10 --keep RUN
    python benchmarks/accuracy.py finetune FOLDER --from RUN

Every seed is a whole run of `resnetkit.train`: another start, another order, other crops. The score is that of the last
weights on the test split where there is one, else on the validation split, which no choice of the run depends on.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import resnetkit
from common import write
from resnetkit.recipe import Recipe
from resnetkit.recipe_file import to_dict
from resnetkit.runs import read_log, read_recipe


def measure(recipe: Recipe, data: str, weights: str | None, seed: int, folder: Path) -> dict[str, Any]:
    """One run."""
    begin = time.perf_counter()
    seeded = replace(recipe, run=replace(recipe.run, seed=seed))
    finished = resnetkit.train(data, recipe=seeded, weights=weights, out=folder)
    seconds = time.perf_counter() - begin
    result = finished.result
    return {
        "seed": seed,
        "n": result.n,
        "correct": result.correct,
        "top1": result.top1,
        "top1_interval": result.top1_interval,
        "nll": result.nll,
        "ece": result.ece,
        "seconds": round(seconds, 1),
        "images_per_second": round(statistics.median(line["images_per_second"] for line in read_log(folder))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", help="a shipped recipe")
    parser.add_argument("data", help="what `resnet train` takes")
    parser.add_argument("--from", dest="weights", help="what training begins from")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--name", help="of the result; the recipe's")
    parser.add_argument("--keep", type=Path, help="keep the last run in this folder")
    args = parser.parse_args()
    name = args.name or args.recipe
    recipe = resnetkit.recipes()[args.recipe]
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch) / str(seed) for seed in range(args.seeds)]
        runs = [measure(recipe, args.data, args.weights, seed, folder) for seed, folder in enumerate(folders)]
        resolved = to_dict(read_recipe(folders[-1]))
        if args.keep:
            shutil.copytree(folders[-1], args.keep)
    scores = [run["top1"] for run in runs]
    write(
        Path("results") / f"{name}.json",
        {
            "what": f"recipe {args.recipe}, {len(runs)} seed{'s' * (len(runs) > 1)}",
            "top1_mean": statistics.fmean(scores),
            "top1_sd": statistics.stdev(scores) if len(scores) > 1 else None,
            "seconds_longest": max(run["seconds"] for run in runs),
            "runs": runs,
            "recipe": resolved,
        },
    )


if __name__ == "__main__":
    main()

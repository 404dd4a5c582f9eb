"""A study of two tiny runs, pictures for it, and records written by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from resnetkit.paper.records import FORMAT, Record
from resnetkit.paper.running import run_study
from resnetkit.paper.studies import STUDIES, Budget, Recipes, Study, cifar
from resnetkit.recipe_file import to_dict

STEPS = 8  # of a tiny run: 30 training pictures are 3 steps an epoch


def draw_pictures(folder: Path, *, classes: int = 10, side: int = 32, each: int = 4, test: bool = True) -> Path:
    """Noise around a colour for each class, as train/<class>/*.png and test/<class>/*.png."""
    dice = np.random.Generator(np.random.Philox(0))
    for split, count in (("train", each), ("test", 2)) if test else (("train", each),):
        for label in range(classes):
            (folder / split / f"kind-{label}").mkdir(parents=True)
            for number in range(count):
                pixels = (25 * label + dice.integers(0, 30, (side, side, 3))).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / f"kind-{label}" / f"{number}.png")
    return folder


def tiny(budget: Budget, **model: Any) -> Recipes:
    """A plain and a residual network of 8 layers, of the shape of the real study."""
    made = {}
    for kind in ("resnet", "plain"):
        recipe = cifar(budget, f"{kind}8-cifar", **model)
        made[f"{kind}8"] = replace(
            recipe,
            optim=replace(recipe.optim, batch=8),
            schedule=replace(recipe.schedule, steps=STEPS, warmup_steps=2),
            run=replace(recipe.run, checkpoint_steps=2),
        )
    return made


STUDY = replace(STUDIES["degradation"], recipes=tiny)


def run_tiny(
    data: Path | str, where: Path, study: Study = STUDY, seeds: int = 1, budget: Budget = "laptop"
) -> Iterator[Any]:
    """The study's events; records go to WHERE/results, run folders to WHERE/runs."""
    spec = f"cifar10:{data}" if isinstance(data, Path) else data
    return run_study(study, spec, budget=budget, seeds=seeds, results=where / "results", folder=where / "runs")


def comparable(results: Path) -> dict[str, dict[str, Any]]:
    """The records of a folder by name, without how long they took."""
    found = {path.name: json.loads(path.read_text()) for path in sorted(results.rglob("*-seed*.json"))}
    return {name: {key: value for key, value in record.items() if key != "seconds"} for name, record in found.items()}


def layer_numbers(layers: int) -> dict[str, list[float | None]]:
    """Of `signals`; one of them was not finite."""
    return {"variance": [1.0 + i for i in range(layers)], "gradient": [None, *(0.5 for _ in range(layers - 1))]}


def written(
    name: str, seed: int = 0, *, budget: Budget = "laptop", study: str = "degradation", **values: Any
) -> Record:
    """A record as a run of a study would leave it, with numbers of our own; `values` replaces fields."""
    recipe = to_dict(STUDIES[study].recipes(budget)[name])
    recipe["run"]["seed"] = seed
    measured: dict[str, Any] = {"classes": 10, "jpeg": False}
    if study != "imagenet":
        layers = int("".join(filter(str.isdigit, name.partition("-")[0]))) - 1
        measured |= {"start": layer_numbers(layers), "end": layer_numbers(layers)}
        measured["train"] = {"n": 1000, "correct": 700}
    if name == "plain20":
        measured["deepened"] = {"layers": 56, "correct": 700, "largest_difference": 0.0}
    fields: dict[str, Any] = {
        "format": FORMAT,
        "name": name,
        "seed": seed,
        "budget": budget,
        "recipe": recipe,
        "environment": {
            "fingerprint": "ab" * 32,
            "device": "cpu (Some Processor)",
            "torch_threads": 1,
            "versions": {"resnetkit": "0.1.0", "torch": "2.13.0"},
            "machine": "Linux, 2 cores",
            "derived": [],
            "notes": [],
            "data": "cifar10:cifar10-q75",
        },
        "train_curve": [[10 * i, 90.0 - 5 * i - seed] for i in range(1, 11)],
        "test_curve": [[50, 70.0 + seed], [100, 45.0 + seed]],
        "held": "test",
        "train_error": 41.25 + seed,
        "result": {"n": 400, "correct": 220, "top1": 0.55, "top1_interval": [0.5, 0.6], "nll": 1.25},
        "diverged": None,
        "measured": measured,
        "seconds": 60.0,
    }
    return Record(**(fields | values))


def put(results: Path, *records: Record) -> Path:
    """Write records where a study would; returns the folder."""
    for record in records:
        path = results / record.budget / f"{record.name}-seed{record.seed}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(record)))
    return results

"""Which pictures are worth labelling: the choice of `resnet label-next` against chance, at equal numbers of labels.

    python benchmarks/labelling.py MODEL DATA [--uneven] [--out results/labelling.json]

MODEL    a network that was trained on other classes; its backbone stays as it is
DATA     a folder with train/<class> and val/<class>; its first CLASSES classes are taken
--uneven the pool is long-tailed, as pools are that nobody tidied: of class c, RATIO ** (-c / (CLASSES - 1)) of train/

Every picture is embedded once. A seed draws FIRST labelled pictures at random, the same for all ways to choose; then
each way adds STEP pictures at a time from the rest of train/, a dense layer is fitted to what is labelled
(`head.fit_head`), and scored on all of val/. The pictures of val/ choose nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from common import student, write
from resnetkit.data.loader import Reader, default_threads
from resnetkit.data.source import open_data
from resnetkit.head import fit_head
from resnetkit.kcentre import choose, unsureness
from resnetkit.protocol import outputs
from resnetkit.recipe import Optim
from resnetkit.weights import open_model

CLASSES, FIRST, STEP = 20, 100, 100
LAST = {False: 1000, True: 600}  # labels, with an even and an uneven pool
SEEDS = {False: tuple(range(10)), True: tuple(range(5))}
RATIO = 50
RECIPE = Optim(optimizer="lbfgs", freeze="backbone", weight_decay=0.03)  # one for all, so that none gains by tuning

Vectors = NDArray[np.float32]
Table = NDArray[np.float64]
# Vectors and answers of the candidates, vectors of what is labelled, how many, dice: to rows of the candidates.
Way = Callable[[Vectors, Table, Vectors, int, np.random.Generator], NDArray[np.int64]]


def by_chance(x: Vectors, table: Table, known: Vectors, n: int, dice: np.random.Generator) -> NDArray[np.int64]:
    del table, known
    return dice.permutation(len(x))[:n]


def by_unsureness(x: Vectors, table: Table, known: Vectors, n: int, dice: np.random.Generator) -> NDArray[np.int64]:
    del x, known, dice
    return np.argsort(-unsureness(table), kind="stable")[:n]


def by_distance(x: Vectors, table: Table, known: Vectors, n: int, dice: np.random.Generator) -> NDArray[np.int64]:
    del table, dice
    return np.array([choice.row for choice in choose(x, np.ones(len(x)), known, n)])


def by_both(x: Vectors, table: Table, known: Vectors, n: int, dice: np.random.Generator) -> NDArray[np.int64]:
    del dice
    return np.array([choice.row for choice in choose(x, unsureness(table), known, n)])


WAYS: dict[str, Way] = {
    "random": by_chance,
    "uncertainty": by_unsureness,
    "k-center": by_distance,
    "label-next": by_both,
}


def embedded(model: Path, folder: Path, uneven: bool) -> dict[str, tuple[Vectors, NDArray[np.int64]]]:
    """Vectors and labels of train and val, the first classes alone; of an uneven pool the pictures that are in it."""
    opened, data = open_model(model), open_data(folder)
    network = opened.network
    found = {}
    for split in ("train", "val"):
        indices = data.splits[split][data.labels[data.splits[split]] < CLASSES]
        if uneven and split == "train":
            own = [indices[data.labels[indices] == label] for label in range(CLASSES)]
            many = [round(len(one) * RATIO ** (-label / (CLASSES - 1))) for label, one in enumerate(own)]
            indices = np.concatenate([one[:n] for one, n in zip(own, many, strict=True)])
        reader = Reader(data, opened.preprocess, threads=default_threads())
        rows = [part.rows for part in outputs(network, reader, indices, network.embed)]
        found[split] = (np.concatenate(rows), data.labels[indices].astype(np.int64))
    return found


def curve(
    way: Way, found: dict[str, tuple[Vectors, NDArray[np.int64]]], seed: int, dice: np.random.Generator, last: int
) -> list[float]:
    """Top-1 on val after each number of labels."""
    (x, y), (held, truth) = found["train"], found["val"]
    labelled = np.random.default_rng(seed).permutation(len(x))[:FIRST]
    scores = []
    while True:
        head = fit_head(x[labelled], y[labelled], CLASSES, RECIPE, steps=100, seed=0)

        def answers(rows: Vectors, weight: torch.Tensor = head.weight, bias: torch.Tensor = head.bias) -> torch.Tensor:
            return torch.from_numpy(rows) @ weight.T + bias

        scores.append(float((answers(held).argmax(1).numpy() == truth).mean()))
        if len(labelled) >= last:
            return scores
        rest = np.setdiff1d(np.arange(len(x)), labelled)
        table = answers(x[rest]).double().softmax(1).numpy()
        labelled = np.concatenate([labelled, rest[way(x[rest], table, x[labelled], STEP, dice)]])


def against(rows: list[list[float]], chance: list[list[float]]) -> list[dict[str, float]]:
    """The mean difference at each number of labels, with Student's 95 % interval over the seeds."""
    found = []
    for place in range(len(rows[0])):
        mean, low, high = student([row[place] - base[place] for row, base in zip(rows, chance, strict=True)])
        found.append({"difference": mean, "low": low, "high": high})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--uneven", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("results/labelling.json"))
    args = parser.parse_args()
    begin = time.perf_counter()
    found, last = embedded(args.model, args.data, args.uneven), LAST[args.uneven]
    curves: dict[str, list[list[float]]] = {name: [] for name in WAYS}
    for seed in SEEDS[args.uneven]:
        for name, way in WAYS.items():
            curves[name].append(curve(way, found, seed, np.random.default_rng([seed, 1]), last))
        told = {name: round(rows[-1][-1], 4) for name, rows in curves.items()}
        print(f"seed {seed}: {told}", file=sys.stderr, flush=True)
    ways: dict[str, Any] = {}
    for name, rows in curves.items():
        ways[name] = {"top1": [statistics.fmean(column) for column in zip(*rows, strict=True)], "seeds": rows}
        if name != "random":
            ways[name]["against_random"] = against(rows, curves["random"])
    write(
        args.out,
        {
            "what": f"{CLASSES} classes of Tiny ImageNet on the features of {open_model(args.model).network.arch.name} "
            "with published CIFAR-10 weights: top-1 on the pictures of val, by which pictures were labelled",
            "command": "python benchmarks/labelling.py cifar10-resnet56 tiny-imagenet-50"
            + (" --uneven" if args.uneven else ""),
            "labels": list(range(FIRST, last + 1, STEP)),
            "pool": len(found["train"][0]),
            "tested": len(found["val"][0]),
            "ways": ways,
            "interval": "95 %, Student's t over the seeds' differences from random at the same number of labels",
            "weight_decay": RECIPE.weight_decay,
            "seconds": round(time.perf_counter() - begin),
        },
    )


if __name__ == "__main__":
    main()

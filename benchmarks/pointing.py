"""The pointing game (arXiv 1608.00507): how often the strongest place of a heat map lies on the object.

    python benchmarks/pointing.py [--out results/pointing.json]

A picture is a digit of scikit-learn's, 8x8 pixels twice enlarged, at a random place of a generated texture, beside two
other digits whose pixels are shuffled, so that strokes and brightness alone do not tell where it is. A network is
trained on such pictures of four fifths of the digits, none shown twice; HELD_OUT pictures of other digits are asked
for the map of their true class, whatever the network answers. A hit is strict: inside the digit's box, no margin.

The same pictures are asked of networks whose weights are random (arXiv 1810.03292, all layers at once), and three
ways to point need no network: a random place, the middle, and the steepest edge.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.nn import functional as F

from common import write
from resnetkit.data.transforms import Preprocess
from resnetkit.evaluation import wilson
from resnetkit.explaining import METHODS, Heat, heat_map
from resnetkit.model import ResNet, architecture
from resnetkit.weights import ModelFile

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from pointing_samples import Placed, edges, hit, placed

SIDE, STEPS, BATCH, RATE = 48, 700, 32, 0.1
HELD_OUT = 210  # pictures, each with a digit of its own
RANDOM_SEEDS = (1, 2, 3)  # of random weights; each gets a third of the pictures
DIGITS = tuple("0123456789")
PREPROCESS = Preprocess(SIDE, "shorter", SIDE, "bilinear", 3, "RGB", (0.45,) * 3, (0.2,) * 3, True)

Mapped = Callable[[int, Placed], Heat]  # number of a picture, and the picture


def new_network(seed: int) -> ResNet:
    torch.manual_seed(seed)
    return ResNet(architecture("resnet8-cifar", classes=len(DIGITS), width=8, stem_stride=2))


def pictures(digits: Any, members: np.ndarray, dice: np.random.Generator) -> list[Placed]:
    """A picture of each digit that is named by its number."""
    return [placed(digits.images[i] / 16, int(digits.target[i]), dice, SIDE) for i in members.tolist()]


def batch(made: list[Placed]) -> tuple[torch.Tensor, torch.Tensor]:
    shown = torch.from_numpy(np.stack([each.picture for each in made]))
    return PREPROCESS.normalise(shown), torch.tensor([each.label for each in made])


def trained(digits: Any, members: np.ndarray) -> ModelFile:
    """A network that has seen STEPS * BATCH pictures, each of them once."""
    dice, network = np.random.default_rng(0), new_network(0)
    optimizer = torch.optim.SGD(network.parameters(), RATE, momentum=0.9, weight_decay=1e-4, nesterov=True)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = RATE * min(1, (step + 1) / 50) * (1 - step / STEPS)
        x, y = batch(pictures(digits, dice.choice(members, BATCH), dice))
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimizer.step()
    return ModelFile(network.eval(), DIGITS, PREPROCESS)


def share(hits: int, n: int) -> dict[str, Any]:
    return {"hits": hits, "n": n, "share": hits / n, "interval": wilson(hits, n)}


def game(shown: list[Placed], mapped: Mapped) -> dict[str, Any]:
    """How often the strongest place is in the box."""
    return share(sum(hit(mapped(number, one), one.box) for number, one in enumerate(shown)), len(shown))


def one_place(row: int, column: int) -> Heat:
    heat = np.zeros((SIDE, SIDE), np.float32)
    heat[row, column] = 1
    return heat


def baselines(shown: list[Placed]) -> dict[str, Any]:
    """Ways to point that need no network; of the random place also what it comes to in the long run."""
    dice = np.random.default_rng(2)
    areas = [(one.box[2] - one.box[0]) * (one.box[3] - one.box[1]) for one in shown]
    return {
        "random place": game(shown, lambda *_: one_place(*dice.integers(0, SIDE, 2).tolist()))
        | {"expected": float(np.mean(areas)) / SIDE**2},
        "middle": game(shown, lambda *_: one_place(SIDE // 2, SIDE // 2)),
        "steepest edge": game(shown, lambda _, one: edges(one.picture)),
    }


def methods(shown: list[Placed], models: list[ModelFile]) -> dict[str, Any]:
    """Each method's hits, for the true class; the models take turns."""
    found = {}
    for method in METHODS:

        def mapped(number: int, one: Placed, method: Any = method) -> Heat:
            return heat_map(models[number % len(models)], one.picture, of=DIGITS[one.label], method=method)

        found[method] = game(shown, mapped)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/pointing.json"))
    out = parser.parse_args().out
    torch.set_num_threads(1)
    digits = load_digits()
    members = np.arange(len(digits.target))
    train, held = train_test_split(members, test_size=0.2, stratify=digits.target, random_state=0)
    held = held[:HELD_OUT]
    begin = time.perf_counter()
    model = trained(digits, train)
    seconds = time.perf_counter() - begin
    shown = pictures(digits, held, np.random.default_rng(1))
    x, y = batch(shown)
    with torch.inference_mode():
        right = int((model.network(x).argmax(1) == y).sum())
    random = [replace(model, network=new_network(seed).eval()) for seed in RANDOM_SEEDS]
    write(
        out,
        {
            "pictures": {"held_out": len(shown), "train_digits": len(train), "side": SIDE, "box": 16, "batch": BATCH},
            "network": {
                "name": model.network.arch.name,
                "width": 8,
                "steps": STEPS,
                "batch": BATCH,
                "seconds": seconds,
            },
            "accuracy": share(right, len(y)),
            "baselines": baselines(shown),
            "trained": methods(shown, [model]),
            "random_weights": {"seeds": RANDOM_SEEDS, "methods": methods(shown, random)},
        },
    )


if __name__ == "__main__":
    main()

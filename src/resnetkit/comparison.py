"""Two models on the same pictures. Both see every picture, so what counts is where one is right and the other wrong.

Two scores with an interval each say little of their difference: most pictures are easy or hard for both. The test is
McNemar's in its exact form, the interval that of Newcombe (1998, Statistics in Medicine 17, 2635-2650), method 10.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from resnetkit.data.loader import Reader, default_threads
from resnetkit.data.pictures import Data, name_bad
from resnetkit.errors import UserError
from resnetkit.evaluation import as_trained, choose_split, wilson
from resnetkit.protocol import ONE_CROP, Member, Progress, Scoring, ask
from resnetkit.weights import ModelFile, open_model, place

NAMED = 24  # pictures on which the models differ that are kept by name
LEVEL = 0.05  # below it a difference is told


@dataclass(frozen=True)
class Paired:
    """How often two models are right on the same pictures: counts, and what follows from them.

    difference  of the shares, B minus A, with its 95 % interval
    p           of McNemar's exact test: how likely so uneven a split of the pictures that only one gets right would be
                if both models were equally good
    """

    both: int
    only_a: int
    only_b: int
    neither: int
    difference: float
    interval: tuple[float, float]
    p: float

    @property
    def n(self) -> int:
        return self.both + self.only_a + self.only_b + self.neither

    def __str__(self) -> str:
        sign = -1 if self.difference < 0 else 1
        low, high = sorted(100 * sign * end for end in self.interval)
        better, worse = ("B", "A") if sign == 1 else ("A", "B")
        points = f"{100 * abs(self.difference):.2f} points ({low:.2f} to {high:.2f})"
        chance = "p < 0.001" if self.p < 0.001 else f"p = {self.p:.2g}"
        if self.p < LEVEL:
            return f"{better} is right more often by {points}, {chance}"
        return f"no difference can be told from these pictures: {better} minus {worse} is {points}, {chance}"


@dataclass(frozen=True)
class Differing:
    """A picture that one model gets right and the other wrong: its label and the answer of each."""

    path: str
    label: str
    a: str
    b: str


@dataclass(frozen=True)
class Comparison:
    """Two models on the same pictures. Shares are in [0, 1], intervals of 95 %."""

    a: str  # the models' names, as they were given
    b: str
    n: int
    top1: Paired
    top5: Paired | None  # None where a model has fewer than six classes, and it says nothing
    differing: tuple[Differing, ...]  # those whose wrong answer is most confident first, 24 at most
    bad: dict[str, str]  # unreadable pictures left out: path to reason
    protocol: str  # data, split, views and preprocessing of each, in words

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, under the same names, and the sentence that sums up the top-1."""
        return {**asdict(self), "sentence": str(self)}

    def __str__(self) -> str:
        return str(self.top1)


def paired(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> Paired:
    """What two models get right of the same pictures, in the same order; one picture at least."""
    both, only_a, only_b = int((a & b).sum()), int((a & ~b).sum()), int((b & ~a).sum())
    neither = len(a) - both - only_a - only_b
    interval = newcombe(both, only_a, only_b, neither)
    return Paired(both, only_a, only_b, neither, (only_b - only_a) / len(a), interval, mcnemar(only_a, only_b))


def mcnemar(only_a: int, only_b: int) -> float:
    """The two-sided p of McNemar's exact test: that of as uneven a split of fair coin tosses, or a more uneven one."""
    tosses, fewer = only_a + only_b, min(only_a, only_b)
    ways = term = 1  # whole numbers: nothing is rounded before the last division
    for k in range(fewer):
        term = term * (tosses - k) // (k + 1)
        ways += term
    return min(1.0, 2 * ways / (1 << tosses))


def newcombe(both: int, only_a: int, only_b: int, neither: int) -> tuple[float, float]:
    """The 95 % interval of the difference of two paired shares, B minus A, for one picture or more.

    Newcombe's method 10: the distances of each share to the ends of its Wilson interval, squared and added, less what
    the correlation of the two takes away, which is corrected for continuity.
    """
    n = both + only_a + only_b + neither
    right_a, right_b = both + only_a, both + only_b
    low_a, high_a = wilson(right_a, n)
    low_b, high_b = wilson(right_b, n)
    excess = float(both * neither - only_a * only_b)
    if excess > 0:
        excess = max(excess - n / 2, 0.0)
    margins = math.sqrt(right_a * (n - right_a) * right_b * (n - right_b))
    phi = excess / margins if margins else 0.0

    def distance(of_a: float, of_b: float) -> float:
        return math.sqrt(max(0.0, of_a**2 - 2 * phi * of_a * of_b + of_b**2))

    share_a, share_b, difference = right_a / n, right_b / n, (only_b - only_a) / n
    below = distance(high_a - share_a, share_b - low_b)
    above = distance(share_a - low_a, high_b - share_b)
    return difference - below, difference + above


def compare(
    a: str | Path | ModelFile,
    b: str | Path | ModelFile,
    data: str | Path | Data,
    *,
    split: str | None = None,
    bad: str = "stop",
    device: str = "cpu",
    progress: Progress | None = None,
) -> Comparison:
    """Score two models on the same pictures, each with its own preprocessing, one crop a picture.

    data      anything `open_data` takes; each model has to know its classes, in any order and among others
    split     which part; None: "test", else "val", else all of them
    bad       "stop": raise when a picture cannot be read; "skip": leave it out and list it
    progress  is called with a `Scoring` after every batch
    Raises UserError, also for pictures that the run of one of the models was trained on.
    """
    models = [each if isinstance(each, ModelFile) else open_model(each) for each in (a, b)]
    names = tuple(each.network.arch.name if isinstance(each, ModelFile) else os.fspath(each) for each in (a, b))
    found, name = same_pictures((a, b), names, data, split)
    indices = found.select(name)
    answers = [
        judged(file, found, indices, device, progress=progress and numbered(progress, number))
        for number, file in enumerate(models, start=1)
    ]
    unreadable = answers[0].bad | answers[1].bad
    if unreadable and bad != "skip":
        raise UserError(name_bad(found, unreadable, 'leave out what cannot be read (--bad skip; in Python bad="skip")'))
    first, second = (each.without(unreadable) for each in answers)
    if not len(first.indices):
        raise UserError(f"{found.spec}: no picture that both models can read; {name_bad(found, unreadable)}")
    views = [ONE_CROP.describe(file.preprocess, file.about.temperature) for file in models]
    views = views[:1] if views[0] == views[1] else [f"A: {views[0]}", f"B: {views[1]}"]
    return Comparison(
        a=names[0],
        b=names[1],
        n=len(first.indices),
        top1=paired(first.right, second.right),
        top5=paired(first.in_five, second.in_five) if min(len(file.classes) for file in models) > 5 else None,
        differing=differing(first, second, found),
        bad={found.pictures.name(index): reason for index, reason in sorted(unreadable.items())},
        protocol=f"{found.spec}, {name}, {'; '.join(views)}; fp32",
    )


def same_pictures(
    models: tuple[str | Path | ModelFile, ...], names: tuple[str, ...], data: str | Path | Data, split: str | None
) -> tuple[Data, str]:
    """The data, divided as for training where a model's own run divided them, and the split to compare on.

    Raises UserError when a run was trained on some of those pictures.
    """
    if isinstance(data, Data):
        return data, choose_split(data, split)
    seen = [as_trained(model, data) for model in models]
    found = max(seen, key=lambda each: len(each.splits))  # where one run divided them, its division
    name = choose_split(found, split)
    for model, own in zip(names, seen, strict=True):
        trained = np.intersect1d(found.select(name), own.splits.get("train", ()))
        if len(trained) and name != "train":
            raise UserError(
                f"{found.spec}: {model} was trained on {len(trained):,} of the {len(found.select(name)):,} pictures "
                f"({name}); compare on pictures that neither has seen"
            )
    return found, name


def numbered(progress: Progress, number: int) -> Progress:
    """The progress of the first or second of two models, each of which is asked by itself."""
    return lambda scoring: progress(replace(scoring, member=number, members=2))


@dataclass(frozen=True, eq=False)
class Judged:
    """What one model makes of the pictures `indices`: its answers by class name, how sure it is, and what is right."""

    indices: NDArray[np.int64]
    answers: NDArray[np.object_]
    sure: NDArray[np.float64]
    right: NDArray[np.bool_]
    in_five: NDArray[np.bool_]
    bad: dict[int, str]

    def without(self, unreadable: dict[int, str]) -> Judged:
        """The same without some pictures."""
        keep = np.array([index not in unreadable for index in self.indices.tolist()], dtype=bool)
        kept = {key: value[keep] for key, value in vars(self).items() if key != "bad"}
        return Judged(**kept, bad=self.bad)


def judged(
    file: ModelFile, data: Data, indices: NDArray[np.int64], device: str, progress: Callable[[Scoring], None] | None
) -> Judged:
    """One model's answers, with labels of its own order; right in the sense of `evaluation.measure`."""
    own = data.relabelled(file.classes)
    network = place(file.network, torch.device(device))
    reader = Reader(own, file.preprocess, threads=default_threads())
    given = ask([Member(network, reader, temperature=file.about.temperature)], indices, progress=progress)
    labels, answer = own.labels[given.indices], given.table.argmax(1)
    of_label = given.table[np.arange(len(labels)), labels]
    in_five = (given.table >= of_label[:, None]).sum(1) <= 5  # a tie counts against the label
    names = np.array(file.classes, dtype=object)
    return Judged(given.indices, names[answer], given.table.max(1), answer == labels, in_five, given.bad)


def differing(a: Judged, b: Judged, data: Data) -> tuple[Differing, ...]:
    """Pictures that one model only gets right, those with the most confident wrong answer first."""
    sure = np.where(a.right, b.sure, a.sure)
    rows = np.flatnonzero(a.right != b.right).tolist()
    rows = sorted(rows, key=lambda row: (-sure[row], a.indices[row]))[:NAMED]
    return tuple(
        Differing(data.pictures.name(index), data.classes[data.labels[index]], a.answers[row], b.answers[row])
        for row in rows
        for index in [int(a.indices[row])]
    )

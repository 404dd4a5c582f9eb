"""Two models on the same pictures: how often each is right where the other is wrong, and on which pictures."""

from __future__ import annotations

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
from resnetkit.evaluation import as_trained, choose_split
from resnetkit.paired import Paired, paired
from resnetkit.protocol import ONE_CROP, Member, Progress, Scoring, ask
from resnetkit.weights import ModelFile, open_model, place

NAMED = 24  # pictures on which the models differ that are kept by name


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

"""Kinds of pictures on which a model may be worse: by size, brightness, aspect and source folder.

Each slice is held against all other pictures by Fisher's exact test, and the p values are corrected for how many slices
were looked at (Holm 1979, Scandinavian Journal of Statistics 6, 65-70): whoever looks at twenty slices finds one at
p < 0.05 by chance alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from resnetkit.evaluation import wilson

FEWEST, FOLDERS = 10, 12  # pictures of a slice; folders that are looked at, the largest ones
LEVEL = 0.05
UPRIGHT, WIDE = 1 / 1.1, 1.1  # width / height; between them a picture counts as square


@dataclass(frozen=True)
class Slice:
    """A kind of pictures: right ones, their 95 % interval, and how that compares.

    expected  the mean of the recalls of its pictures' classes: where its classes are hard ones, it is low too
    p         of Fisher's exact test against all other pictures; `holm` corrected for all slices
    """

    kind: str
    name: str
    n: int
    correct: int
    accuracy: float
    interval: tuple[float, float]
    expected: float
    p: float
    holm: float

    @property
    def stands_out(self) -> bool:
        return self.holm < LEVEL


def slices(
    right: NDArray[np.bool_], labels: NDArray[np.int64], names: Sequence[str], values: dict[str, NDArray[np.float64]]
) -> tuple[Slice, ...]:
    """The slices of n pictures, worst corrected p first.

    values  name of a property to (n,), as `data.traits` measures it: width, height, aspect, brightness
    """
    totals = np.bincount(labels)
    recall = np.bincount(labels, right) / np.maximum(totals, 1)
    expected = recall[labels]
    found = []
    for kind, name, inside in [*kinds(values), *sources(names, labels)]:
        n, correct = int(inside.sum()), int(right[inside].sum())
        if n < FEWEST or len(right) - n < FEWEST:
            continue
        p = fisher(correct, n, int(right.sum()), len(right))
        mean = float(expected[inside].mean())
        found.append(Slice(kind, name, n, correct, correct / n, wilson(correct, n), mean, p, p))
    corrected = [replace(each, holm=p) for each, p in zip(found, holm([each.p for each in found]), strict=True)]
    return tuple(sorted(corrected, key=lambda each: (each.holm, each.p, each.kind, each.name)))


Kinds = list[tuple[str, str, NDArray[np.bool_]]]


def kinds(values: dict[str, NDArray[np.float64]]) -> Kinds:
    """(kind, name, which pictures (n,)) of every slice by what was measured."""
    found: Kinds = []
    if {"width", "height"} <= values.keys():
        side = np.minimum(values["width"], values["height"])
        found += quarters("size", side, "shorter side {:.0f} pixels or less", "shorter side {:.0f} pixels or more")
    if "brightness" in values:
        found += quarters("brightness", values["brightness"], "darkest quarter", "brightest quarter")
    if "aspect" in values:
        aspect = values["aspect"]
        found += [
            ("aspect", "upright", aspect < UPRIGHT),
            ("aspect", "about square", (aspect >= UPRIGHT) & (aspect <= WIDE)),
            ("aspect", "wide", aspect > WIDE),
        ]
    return found


def sources(names: Sequence[str], labels: NDArray[np.int64]) -> Kinds:
    """The slices by folder, the largest ones; none where folders are the classes, which have scores of their own."""
    folders = np.array([str(PurePosixPath(name).parent) for name in names], dtype=object)
    sizes, pairs = Counter(folders.tolist()), set(zip(folders.tolist(), labels.tolist(), strict=True))
    if len(pairs) == len(sizes) == len(np.unique(labels)):
        return []
    return [("folder", folder, folders == folder) for folder, _ in sizes.most_common(FOLDERS)]


def quarters(kind: str, measured: NDArray[np.float64], low: str, high: str) -> Kinds:
    """The lowest and the highest quarter; none where most pictures have one value."""
    first, third = np.nanquantile(measured, (0.25, 0.75)) if len(measured) else (0.0, 0.0)
    ends = ((low.format(first), measured <= first), (high.format(third), measured >= third))
    return [(kind, name, inside) for name, inside in ends if 0 < inside.mean() <= 0.5]


def fisher(correct: int, n: int, right: int, total: int) -> float:
    """The two-sided p of Fisher's exact test: `correct` of `n` pictures of a slice, `right` of `total` altogether."""
    lowest, highest = max(0, n - (total - right)), min(n, right)
    logs = np.array([log_ways(right, k) + log_ways(total - right, n - k) for k in range(lowest, highest + 1)])
    chances = np.exp(logs - log_ways(total, n))
    own = chances[correct - lowest]
    return float(min(1.0, chances[chances <= own * (1 + 1e-7)].sum()))


def log_ways(n: int, k: int) -> float:
    """The logarithm of how many choices of k of n there are."""
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def holm(p: Sequence[float]) -> list[float]:
    """The p values corrected for their number, in the same order."""
    corrected, so_far = [0.0] * len(p), 0.0
    for rank, place in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        so_far = max(so_far, min(1.0, (len(p) - rank) * p[place]))
        corrected[place] = so_far
    return corrected

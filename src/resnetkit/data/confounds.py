"""Properties of files that give a class away, as size, brightness or JPEG quality: what a network would learn instead.

For each property and each class the best single threshold (a decision tree of depth one) is found on one half of the
pictures and judged on the other half by its balanced accuracy, of which chance gives 50 %.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resnetkit.data.findings import Finding, Group
from resnetkit.data.pictures import Data
from resnetkit.data.traits import Traits

BINS = 256  # quantiles that thresholds are looked for between
FEWEST = 10  # pictures of a class in each half
LEAST = 0.75  # balanced accuracy that the lower bound must reach: what is photographed has a brightness of its own
Z = 4.5  # standard errors above chance and above LEAST's bound: 1 in 300,000 tries
BOUND = 1.96
SHOWN = 2  # pictures of each side
ADVICE = (
    "a network learns this too, and fails on pictures that come from elsewhere; take pictures of all classes in the "
    "same way, or store them alike"
)


@dataclass(frozen=True)
class Stump:
    """A threshold that tells group `key` from the others; shares are of the half that it was not chosen on."""

    name: str
    key: int
    threshold: float
    below: bool  # the group lies at or below the threshold
    inside: float  # share of the group on that side
    outside: float  # share of the others there
    lower: float  # bound of the balanced accuracy

    @property
    def balanced(self) -> float:
        return 0.5 + (self.inside - self.outside) / 2


def confounds(data: Data, traits: Traits) -> list[Finding]:
    """Findings on classes, and on splits of pictures that come from elsewhere than the others."""
    labels = data.labels[traits.indices].astype(np.int64)
    names = list(data.splits)
    split = np.zeros(len(data), np.int64)
    for number, indices in enumerate(data.splits.values()):
        split[indices] = number
    made = []
    for kind, title, unit, keys, called in (
        ("confounds", "classes that a property of the file gives away", "class", labels, list(data.classes)),
        ("other-sources", "splits that a property of the file tells apart", "split", split[traits.indices], names),
    ):
        found = stumps(traits.values, keys, len(called))
        if found:
            groups = tuple(Group(examples(traits, keys, stump), sentence(stump, called)) for stump in found)
            made.append(Finding(kind, title, len({stump.key for stump in found}), ADVICE, groups, unit=unit))
    return made


def stumps(values: dict[str, NDArray[np.float64]], keys: NDArray[np.int64], groups: int) -> list[Stump]:
    """The thresholds that beat chance by far, the best first; of two groups only the first is named."""
    half = np.random.default_rng(0).permutation(len(keys)) % 2 == 0
    found = []
    for name, column in values.items():
        known = np.where(np.isnan(column), -1.0, column)
        edges = np.unique(np.quantile(known, np.linspace(0, 1, BINS + 1)[1:-1], method="lower")) if len(keys) else known
        place = np.searchsorted(edges, known, side="left")  # bin b: above edges[b - 1], up to edges[b]
        if len(edges) == 0 or len(np.unique(place)) < 2:
            continue
        sides = [shares(place[part], keys[part], groups, len(edges) + 1) for part in (half, ~half)]
        found += judged(name, edges, *sides)
    if groups == 2:
        found = [stump for stump in found if stump.key == 0]
    return sorted(found, key=lambda stump: -stump.balanced)


def shares(
    place: NDArray[np.int64], keys: NDArray[np.int64], groups: int, bins: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """For each group and each bin the share of it, and of the others, up to that bin; how many it has."""
    counts = np.bincount(keys * bins + place, minlength=groups * bins).reshape(groups, bins).cumsum(1)
    whole, sizes = counts.sum(0), counts[:, -1]
    others = np.maximum(len(keys) - sizes, 1)
    return counts / np.maximum(sizes, 1)[:, None], (whole - counts) / others[:, None], sizes


def judged(
    name: str,
    edges: NDArray[np.float64],
    chosen: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]],
    judge: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]],
) -> list[Stump]:
    """The best threshold of each group on one half, where the other half confirms it."""
    gaps = (chosen[0] - chosen[1])[:, : len(edges)]
    total = int(judge[2].sum())
    found = []
    for key in range(len(gaps)):
        n, m = int(judge[2][key]), total - int(judge[2][key])
        if min(n, m, int(chosen[2][key])) < FEWEST:
            continue
        at = int(np.abs(gaps[key]).argmax())
        below = bool(gaps[key, at] > 0)
        inside, outside = (float(each[key, at]) if below else 1 - float(each[key, at]) for each in judge[:2])
        # Laplace's estimate, or a share of 0 or 1 would have no error at all.
        p, q = (inside * n + 1) / (n + 2), (outside * m + 1) / (m + 2)
        error = 0.5 * float(np.sqrt(p * (1 - p) / n + q * (1 - q) / m))
        balanced = 0.5 + (p - q) / 2
        lower = balanced - BOUND * error
        if lower >= LEAST and (balanced - 0.5) / error >= Z:
            found.append(Stump(name, key, float(edges[at]), below, inside, outside, lower))
    return found


def sentence(stump: Stump, called: list[str]) -> str:
    """`cat: JPEG quality at most 80 in 97 % of its pictures and 3 % of the others; balanced accuracy …`"""
    side = "at most" if stump.below else "above"
    inside, outside, balanced = (f"{100 * share:.0f} %" for share in (stump.inside, stump.outside, stump.balanced))
    return (
        f"{called[stump.key]}: {stump.name} {side} {stump.threshold:.4g} in {inside} of its pictures and {outside} "
        f"of the others; balanced accuracy {balanced}, chance 50 %"
    )


def examples(traits: Traits, keys: NDArray[np.int64], stump: Stump) -> tuple[int, ...]:
    """Pictures of the group on its side, and others on theirs."""
    column = np.nan_to_num(traits.values[stump.name], nan=-1.0)
    side = (column <= stump.threshold) == stump.below
    own, rest = np.flatnonzero(side & (keys == stump.key)), np.flatnonzero(~side & (keys != stump.key))
    return tuple(traits.indices[np.concatenate([own[:SHOWN], rest[:SHOWN]])].tolist())

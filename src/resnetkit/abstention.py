"""When a model should say nothing: the probability below which its first class is no answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FEWEST = 20  # answers that have to be left, or their accuracy would be chance


@dataclass(frozen=True)
class Abstention:
    """A threshold, and what it does to pictures that had no part in it.

    threshold  0: every picture is answered
    wanted     the share of the answers that shall be right
    coverage   the share of the pictures that are answered
    accuracy   the share of those that is right; None where none is answered
    """

    threshold: float
    wanted: float
    coverage: float
    accuracy: float | None


def threshold_for(sure: NDArray[np.float64], right: NDArray[np.bool_], wanted: float) -> float | None:
    """The lowest threshold at which so large a share of the answers is right; None where no threshold gives that.

    sure   the probability (n,) of each first class
    right  whether that class is the label
    0 where all answers together are right as often. Otherwise it lies half way between two probabilities.
    """
    order = np.argsort(-sure, kind="stable")
    falling = sure[order]
    shares = np.cumsum(right[order]) / np.arange(1, len(sure) + 1)
    ends = np.append(falling[1:] < falling[:-1], True)  # equal probabilities are answered together
    good = np.flatnonzero(ends & (shares >= wanted) & (np.arange(1, len(sure) + 1) >= FEWEST))
    if not len(good):
        return None
    last = int(good[-1])
    return 0.0 if last == len(sure) - 1 else float((falling[last] + falling[last + 1]) / 2)

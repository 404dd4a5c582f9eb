"""What abstaining buys: how often answers are right when the least sure pictures get none, and from where on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resnetkit.evaluation import wilson

FEWEST = 20  # answers that have to be left above a threshold, or their accuracy would be chance
SHARES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)  # of the pictures that are answered, as a table shows them


@dataclass(frozen=True)
class Answered:
    """The `n` surest pictures: those whose first class has `threshold` or more. `interval` is 95 %, Wilson's."""

    coverage: float
    threshold: float
    n: int
    correct: int
    accuracy: float
    interval: tuple[float, float]


def abstaining(sure: NDArray[np.float64], right: NDArray[np.bool_]) -> tuple[Answered, ...]:
    """From the surest picture on, a row for each threshold there is: pictures that are equally sure go together."""
    order = np.argsort(-sure, kind="stable")
    falling, correct = sure[order], np.cumsum(right[order])
    n = len(sure)
    last = np.flatnonzero(np.append(falling[1:] != falling[:-1], True)[:n])
    rows = [(i + 1, int(correct[i]), float(falling[i])) for i in last.tolist()]
    return tuple(Answered(k / n, threshold, k, good, good / k, wilson(good, k)) for k, good, threshold in rows)


def at_shares(rows: tuple[Answered, ...]) -> list[Answered]:
    """Of each of SHARES the row that answers at least so many; equal ones once."""
    found = [next(row for row in rows if row.coverage >= share - 1e-12) for share in SHARES]
    return list(dict.fromkeys(found))


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
    rows = abstaining(sure, right)
    good = [place for place, row in enumerate(rows) if row.n >= FEWEST and row.accuracy >= wanted]
    if not good:
        return None
    below = rows[good[-1] + 1 :]
    return (rows[good[-1]].threshold + below[0].threshold) / 2 if below else 0.0

"""What abstaining buys: how often answers are right when the least sure pictures get none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resnetkit.evaluation import wilson

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
    last = np.flatnonzero(np.append(falling[1:] != falling[:-1], True))
    n = len(sure)
    rows = [(i + 1, int(correct[i]), float(falling[i])) for i in last.tolist()]
    return tuple(Answered(k / n, threshold, k, good, good / k, wilson(good, k)) for k, good, threshold in rows)


def at_shares(rows: tuple[Answered, ...]) -> list[Answered]:
    """Of each of SHARES the row that answers at least so many; equal ones once."""
    found = [next(row for row in rows if row.coverage >= share - 1e-12) for share in SHARES]
    return list(dict.fromkeys(found))

"""How far probabilities can be believed: their likelihood, and how often answers of one confidence are right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 15  # of equal width, as in arXiv 1706.04599


@dataclass(frozen=True)
class Bin:
    """The answers whose probability is in [low, high): how many, their mean probability, the share that is right."""

    low: float
    high: float
    n: int
    confidence: float | None  # None where there is no answer
    accuracy: float | None


@dataclass(frozen=True)
class Reliability:
    """How far probabilities can be believed.

    nll   mean negative log-likelihood, nats
    ece   expected calibration error, over the bins
    """

    nll: float
    ece: float
    bins: tuple[Bin, ...]


def reliability(table: NDArray[np.float64], labels: NDArray[np.int64]) -> Reliability:
    """The Reliability of probabilities (n, classes) for pictures of these labels (n,)."""
    sure, right = table.max(1), table.argmax(1) == labels
    place = bins_of(sure)
    rows = []
    for number in range(BINS):
        inside = place == number
        means = (float(sure[inside].mean()), float(right[inside].mean())) if inside.any() else (None, None)
        rows.append(Bin(number / BINS, (number + 1) / BINS, int(inside.sum()), *means))
    own = table[np.arange(len(labels)), labels]
    return Reliability(likelihood_cost(own), calibration_error(sure, right), tuple(rows))


def likelihood_cost(own: NDArray[np.float64]) -> float:
    """The mean negative log-likelihood, in nats, from the probability given to each picture's label."""
    return float(-np.log(np.maximum(own, 1e-300)).mean())


def bins_of(sure: NDArray[np.float64]) -> NDArray[np.int64]:
    """The bin that each confidence falls into; the last one has its upper end too."""
    return np.minimum((sure * BINS).astype(np.int64), BINS - 1)


def calibration_error(sure: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    """Mean gap between confidence and accuracy over bins of equal width, weighted by their counts."""
    bins = bins_of(sure)
    counts = np.bincount(bins, minlength=BINS)
    gaps = np.abs(np.bincount(bins, right, BINS) - np.bincount(bins, sure, BINS))
    return float(gaps[counts > 0].sum() / len(sure))

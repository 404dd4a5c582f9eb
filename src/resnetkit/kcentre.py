"""Which pictures to label next: those that the model is unsure of, and that are unlike one another.

k-center greedy (Sener and Savarese 2018, arXiv 1708.00489) with each distance weighted by how unsure the answer is.
Distances are between vectors of length 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK = 2_000  # rows at a time, so that distances to many centres fit into memory


@dataclass(frozen=True)
class Choice:
    """Row `row`, chosen when it was `distance` away from the nearest of the centres and the rows chosen before.

    nearest   the row of the centres where it is 0 or more; -1 - r for row r of the candidates; None where none was
    """

    row: int
    distance: float
    nearest: int | None


def unsureness(table: NDArray[np.floating]) -> NDArray[np.float64]:
    """How unsure the answers of probabilities (n, classes) are: 1 less the margin of the first over the second."""
    two = np.sort(table, axis=1)[:, -2:].astype(np.float64)
    return 1 - (two[:, 1] - two[:, 0])


def choose(
    vectors: NDArray[np.float32], unsure: NDArray[np.float64], centres: NDArray[np.float32], n: int
) -> list[Choice]:
    """At most n rows of the vectors (candidates, d), one after the other, the most worthwhile first.

    unsure   (candidates,), at least 0; ones choose by distance alone
    centres  (m, d): what is labelled already; m may be 0, and the most unsure row is then the first
    """
    x, known = unit(vectors), unit(centres)
    distance, nearest = np.full(len(x), np.inf), np.zeros(len(x), np.int64)
    if len(known):
        for first in range(0, len(x), BLOCK):
            products = x[first : first + BLOCK] @ known.T
            nearest[first : first + BLOCK] = products.argmax(1)
            distance[first : first + BLOCK] = apart(products.max(1))
    left = np.ones(len(x), dtype=bool)
    chosen: list[Choice] = []
    for _ in range(min(n, len(x))):
        worth = unsure * distance if np.isfinite(distance).all() else unsure
        row = int(np.where(left, worth, -1.0).argmax())
        none = not np.isfinite(distance[row])
        chosen.append(Choice(row, float(distance[row]), None if none else int(nearest[row])))
        left[row] = False
        closer = apart(x @ x[row])
        nearest = np.where(closer < distance, -1 - row, nearest)
        distance = np.minimum(distance, closer)
    return chosen


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of length 1; a row of zeros stays."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: NDArray[np.float32] = vectors / np.maximum(length, 1e-12)
    return scaled


def apart(products: NDArray[np.float32]) -> NDArray[np.float64]:
    """The distance of vectors of length 1 from their inner products."""
    away: NDArray[np.float64] = np.sqrt(np.maximum(2 - 2 * products.astype(np.float64), 0))
    return away

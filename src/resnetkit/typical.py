"""Which pictures of a class are typical of it, to a network: by their vectors' angle to the mean of the others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class OfClass:
    """Rows of a class's pictures: most typical first, least typical first, and most confidently wrong first."""

    label: int
    most: tuple[int, ...]
    least: tuple[int, ...]
    wrong: tuple[int, ...]


def typicality(vectors: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """For each of n vectors (n, d) the cosine to the mean of the other ones of its class; 1 for a class of one."""
    unit = vectors.astype(np.float64)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    cosines = np.ones(len(unit))
    for label in np.unique(labels).tolist():
        rows = np.flatnonzero(labels == label)
        if len(rows) > 1:
            others = unit[rows].sum(0) - unit[rows]  # without the picture itself, which would draw it near
            cosines[rows] = (unit[rows] * others).sum(1) / np.maximum(np.linalg.norm(others, axis=1), 1e-12)
    return cosines


def of_classes(
    vectors: NDArray[np.float32], table: NDArray[np.float64], labels: NDArray[np.int64], many: int
) -> list[OfClass]:
    """For each class that occurs its `many` most and least typical pictures, and its most confident wrong answers."""
    near, answer, sure = typicality(vectors, labels), table.argmax(1), table.max(1)
    found = []
    for label in np.unique(labels).tolist():
        rows = np.flatnonzero(labels == label)
        by_nearness = rows[np.argsort(-near[rows], kind="stable")].tolist()
        most = by_nearness[:many]
        least = [row for row in reversed(by_nearness) if row not in most][:many]
        mistaken = rows[answer[rows] != label]
        wrong = mistaken[np.argsort(-sure[mistaken], kind="stable")].tolist()[:many]
        found.append(OfClass(label, tuple(most), tuple(least), tuple(wrong)))
    return found

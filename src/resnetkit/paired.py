"""Two scores on the same pictures. Both see every picture, so what counts is where one is right and the other wrong.

Two scores with an interval each say little of their difference: most pictures are easy or hard for both. The test is
McNemar's in its exact form, the interval that of Newcombe (1998, Statistics in Medicine 17, 2635-2650), method 10.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resnetkit.evaluation import wilson

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

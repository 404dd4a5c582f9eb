"""What would change a network's mind: which parts of a picture, covered, make it answer something else.

A part is a cell of a grid over the crop; what covers it is the mean colour of the training pictures. Cells are covered
in the order of how much each of them alone speaks for the answer against the next one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnetkit.weights import ModelFile

GRID = 6  # cells a side
TOGETHER = 16  # pictures that the network sees at a time
CONTROLS = 20  # choices of as many cells at random


@dataclass(frozen=True)
class Change:
    """What has to be covered for another answer.

    answer, runner_up  of the whole picture, with their probabilities
    cells      of the grid, (row, column), in the order in which they are covered; empty: no number of them changes it
    becomes    the answer then, and its probability; None where nothing changes it
    alone      how many of the cells change the answer when each is covered alone
    by_chance  the share of random choices of as many cells that change it too: where it is high, covering anything
               does, and the cells say little
    """

    answer: str
    probability: float
    runner_up: str
    runner_up_probability: float
    cells: tuple[tuple[int, int], ...]
    becomes: str | None
    becomes_probability: float | None
    alone: int
    by_chance: float | None

    @property
    def share(self) -> float:
        """Of the crop that is covered."""
        return len(self.cells) / GRID**2


def change(model: ModelFile, x: Tensor) -> Change:
    """What would change the answer for the input x (1, C, size, size). A model of one class has no other answer."""
    cells = masks(x.shape[2]).to(x.device)
    whole = table(model, x)[0]
    first, second = np.argsort(-whole, kind="stable")[:2] if len(whole) > 1 else (0, 0)
    singles = table(model, covered(x, cells))
    order = np.argsort(margin(singles, int(first)), kind="stable")
    # Covered one after the other: the first row has one cell, the last one all.
    growing = torch.stack([cells[order[: k + 1].tolist()].any(0) for k in range(len(order))])
    flipped = np.flatnonzero((after := table(model, covered(x, growing))).argmax(1) != first)
    taken, becomes, sure, by_chance = 0, None, None, None
    if len(flipped):
        taken = int(flipped[0]) + 1
        becomes = int(after[taken - 1].argmax())
        sure = float(after[taken - 1, becomes])
        dice = np.random.default_rng(0)
        chosen = (dice.choice(len(order), taken, replace=False) for _ in range(CONTROLS))
        controls = table(model, covered(x, torch.stack([cells[each.tolist()].any(0) for each in chosen])))
        by_chance = float((controls.argmax(1) != first).mean())
    return Change(
        model.classes[first],
        float(whole[first]),
        model.classes[second],
        float(whole[second]),
        tuple((int(cell) // GRID, int(cell) % GRID) for cell in order[:taken]),
        None if becomes is None else model.classes[becomes],
        sure,
        int((singles.argmax(1) != first).sum()),
        by_chance,
    )


def masks(side: int) -> Tensor:
    """The cells of the grid, bool (GRID * GRID, side, side), row by row; cells of a small picture may be empty."""
    bounds = [side * k // GRID for k in range(GRID + 1)]
    cells = torch.zeros(GRID * GRID, side, side, dtype=torch.bool)
    for cell in range(GRID * GRID):
        row, column = divmod(cell, GRID)
        cells[cell, bounds[row] : bounds[row + 1], bounds[column] : bounds[column + 1]] = True
    return cells


def covered(x: Tensor, hidden: Tensor) -> Tensor:
    """The input once for each mask (n, size, size), with 0, which is the mean colour, where the mask is."""
    return torch.where(hidden[:, None], torch.zeros((), device=x.device, dtype=x.dtype), x)


def table(model: ModelFile, inputs: Tensor) -> NDArray[np.float64]:
    """Probabilities (n, classes), with the model's temperature."""
    with torch.inference_mode():
        parts = [model.network(part).double() / model.about.temperature for part in torch.split(inputs, TOGETHER)]
    shares: NDArray[np.float64] = torch.cat(parts).softmax(1).cpu().numpy()
    return shares


def margin(shares: NDArray[np.float64], first: int) -> NDArray[np.float64]:
    """How far the class is ahead of the best other one, as the logarithm of how many times more probable it is."""
    logs = np.log(np.maximum(shares, 1e-300))
    others = np.delete(logs, first, axis=1)
    if not others.shape[1]:
        return logs[:, first]
    ahead: NDArray[np.float64] = logs[:, first] - others.max(1)
    return ahead

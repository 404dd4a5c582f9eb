"""The dense layer alone, fitted to vectors by L-BFGS: convex, without a learning rate.

Each number of a vector is scaled to variance 1 for the fit and the scale then put into the weights, so the decay means
the same for every backbone. Where the recipe gives no weight decay, the best of `DECAYS` is taken: the one with the
least loss on fifths of the training pictures that were left out, or on one fifth of many.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnetkit.data.loader import order
from resnetkit.losses import AS_THEY_COME, Balance, classification_loss
from resnetkit.recipe import Optim

DECAYS = (1.0, 0.1, 0.03, 0.01, 3e-3, 1e-3, 1e-4)
FOLDS = 5
FEW = 2_000  # pictures up to which every fifth is left out once; of more, one of them says enough
CHOOSING = 40  # most iterations of a fit that only chooses the decay
FLAT = 1e-5  # share of the largest deviation below which a number of the vectors counts as constant
Loss = Callable[[Tensor, Tensor], Tensor]  # of logits (n, classes) and labels (n,)


@dataclass(frozen=True)
class Head:
    """A fitted dense layer: weight (classes, d), bias (classes,), and how it was found.

    loss, correct  on the pictures it was fitted to, without the decay
    tried          weight decay to the mean loss on pictures left out; empty where the recipe gave one
    """

    weight: Tensor
    bias: Tensor
    weight_decay: float
    iterations: int
    loss: float
    correct: int
    tried: dict[float, float]

    def __str__(self) -> str:
        how = f", the best of {len(self.tried)} on pictures left out" if self.tried else ""
        return f"dense layer fitted: {self.iterations} iterations, weight decay {self.weight_decay:g}{how}"


def fit_head(
    vectors: NDArray[np.float32],
    labels: NDArray[np.int64],
    classes: int,
    optim: Optim,
    *,
    steps: int,
    seed: int,
    balance: Balance = AS_THEY_COME,
) -> Head:
    """The dense layer of least mean loss plus weight_decay / 2 times its squared weights; the bias is free.

    vectors  (n, d); labels (n,) into `classes`
    steps    the most iterations; `seed` says which pictures are left out to choose the decay
    """

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        return classification_loss(logits, y, 1.0, optim, balance)

    x, y = torch.from_numpy(vectors).double(), torch.from_numpy(labels)
    mean, scale = x.mean(0), x.std(0, correction=0)
    scale = torch.where(scale > FLAT * scale.max(), scale, torch.full_like(scale, torch.inf))
    x = (x - mean) / scale
    tried: dict[float, float] = {}
    decay, start = optim.weight_decay, torch.zeros(classes, x.shape[1] + 1).double()
    if not decay:
        tried = losses_left_out(x, y, start, loss, seed)
        decay = min(tried, key=tried.__getitem__)
    solution, iterations = minimised(x, y, start, loss, decay, steps)
    weight = solution[:, :-1] / scale
    bias = solution[:, -1] - weight @ mean
    logits = answers(x, solution)
    correct = int((logits.argmax(1) == y).sum())
    return Head(weight.float(), bias.float(), decay, iterations, loss(logits, y).item(), correct, tried)


def answers(x: Tensor, solution: Tensor) -> Tensor:
    """The logits (n, classes) of a solution (classes, d + 1), whose last column is the bias."""
    return x @ solution[:, :-1].T + solution[:, -1]


def losses_left_out(x: Tensor, y: Tensor, start: Tensor, loss: Loss, seed: int) -> dict[float, float]:
    """Each of `DECAYS` with the mean loss on pictures that took no part in the fit, added up over the folds."""
    fold = torch.from_numpy(stratified(y.numpy(), seed))
    total = dict.fromkeys(DECAYS, 0.0)
    for number in range(FOLDS if len(y) <= FEW else 1):
        out = fold == number
        if not out.any() or out.all():
            continue
        solution = start
        for decay in DECAYS:  # from the strongest on, each beginning where the one before ended
            solution, _ = minimised(x[~out], y[~out], solution, loss, decay, CHOOSING)
            total[decay] += loss(answers(x[out], solution), y[out]).item()
    return total


def stratified(labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """A number in 0 … FOLDS - 1 for each picture, so that each class is spread over them as evenly as can be."""
    mixed = order(seed, 0, len(labels))
    by_class = mixed[np.argsort(labels[mixed], kind="stable")]
    fold = np.empty(len(labels), np.int64)
    fold[by_class] = np.arange(len(labels)) % FOLDS
    return fold


def minimised(x: Tensor, y: Tensor, start: Tensor, loss: Loss, decay: float, steps: int) -> tuple[Tensor, int]:
    """The solution that L-BFGS finds from `start` in so many iterations at most, and how many it took."""
    solution = start.clone().requires_grad_(True)
    lbfgs = torch.optim.LBFGS([solution], max_iter=steps, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        lbfgs.zero_grad()
        value = loss(answers(x, solution), y) + decay / 2 * solution[:, :-1].square().sum()
        torch.autograd.backward(value)
        return value

    lbfgs.step(closure)  # type: ignore[no-untyped-call]
    return solution.detach(), int(lbfgs.state[solution].get("n_iter", 0))

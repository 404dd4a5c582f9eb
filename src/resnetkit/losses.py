"""The loss of a batch whose pictures may be mixed with those of the batch in reverse order (`mixing`).

Where classes are of unlike size, `Balance` makes up for it in the loss; `loader.evenly` does in what is shown. Where a
picture may have several labels, each label is a question of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from resnetkit.recipe import Optim


@dataclass(frozen=True)
class Balance:
    """What makes up for classes of unlike size, each float32 (classes,), or None where it is off.

    weights  factor of the loss of a class's pictures; its mean over the training pictures is 1
    shift    is added to the logits in the loss alone: the logit adjustment of arXiv 2007.07314, equation 10
    """

    weights: Tensor | None = None
    shift: Tensor | None = None

    def to(self, device: torch.device) -> Balance:
        moved = (None if part is None else part.to(device) for part in (self.weights, self.shift))
        return Balance(*moved)


AS_THEY_COME = Balance()


def balance_of(counts: Sequence[int], recipe: Optim) -> Balance:
    """The balance that a recipe wants for classes with so many training pictures."""
    number = torch.tensor(counts, dtype=torch.float64).clamp_min(1)
    weights = shift = None
    if recipe.class_weights:
        weights = number**-recipe.class_weights
        weights = (weights * number.sum() / (weights * number).sum()).float()
    if recipe.logit_adjustment:
        shift = (recipe.logit_adjustment * (number / number.sum()).log()).float()
    return Balance(weights, shift)


@dataclass(frozen=True)
class Objective:
    """What training makes small, and what it counts as right.

    sets   float32 (combinations, classes), 1 where a label is in a combination, as `data.pictures.Data.sets`; None: a
           label is a class
    """

    recipe: Optim
    balance: Balance = AS_THEY_COME
    sets: Tensor | None = None

    def loss(self, logits: Tensor, labels: Tensor, share: float) -> Tensor:
        """The mean loss of logits (N, classes) for labels (N,); `share` as in `classification_loss`."""
        if self.sets is None:
            return classification_loss(logits, labels, share, self.recipe, self.balance)
        return several_loss(logits, self.sets[labels], share, self.recipe)

    def right(self, logits: Tensor, labels: Tensor) -> Tensor:
        """bool (N,): the first class is the label; of several labels, all are said and no other."""
        if self.sets is None:
            return logits.argmax(1) == labels
        return ((logits > 0) == self.sets[labels].bool()).all(1)


def objective_of(
    counts: Sequence[int], sets: NDArray[np.bool_] | None, recipe: Optim, device: torch.device
) -> Objective:
    """The objective of a recipe, for classes with so many training pictures."""
    if sets is not None:
        return Objective(recipe, sets=torch.from_numpy(sets).float().to(device))
    return Objective(recipe, balance_of(counts, recipe).to(device))


def several_loss(logits: Tensor, targets: Tensor, share: float, recipe: Optim) -> Tensor:
    """Binary cross-entropy of each label on its own, summed over labels and averaged over pictures.

    logits, targets (N, classes). Smoothing draws targets to a half, as each is a choice between two. The sum, because
    its gradients are of the size of cross-entropy's, for which the recipes' learning rates are; those of the mean over
    labels are as many times smaller as there are labels.
    """
    targets = targets * (1 - recipe.label_smoothing) + recipe.label_smoothing / 2
    if share < 1:
        targets = share * targets + (1 - share) * targets.flip(0)
    if recipe.target_threshold:
        targets = (targets > recipe.target_threshold).float()
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(1).mean()


def classification_loss(
    logits: Tensor, labels: Tensor, share: float, recipe: Optim, balance: Balance = AS_THEY_COME
) -> Tensor:
    """The mean loss of logits (N, classes) for labels (N,), of which each picture shows `share`, and 1 - share of the
    labels reversed.

    "cross-entropy" is that of softmax. "bce" is binary cross-entropy of each class on its own, averaged over pictures
    and classes, as in timm's BinaryCrossEntropy and arXiv 2110.00476; see `soft_targets` and `target_threshold`.
    """
    if balance.shift is not None:
        logits = logits + balance.shift
    if recipe.loss == "bce":
        targets = soft_targets(labels, logits.shape[1], share, recipe.label_smoothing)
        if recipe.target_threshold:
            targets = (targets > recipe.target_threshold).float()
        if balance.weights is None:
            return F.binary_cross_entropy_with_logits(logits, targets)
        own = balance.weights[labels]
        each = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)
        return (each * (share * own + (1 - share) * own.flip(0))).mean()
    loss = cross_entropy(logits, labels, recipe.label_smoothing, balance.weights)
    if share < 1:
        other = cross_entropy(logits, labels.flip(0), recipe.label_smoothing, balance.weights)
        loss = share * loss + (1 - share) * other
    return loss


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float, weights: Tensor | None) -> Tensor:
    """The mean over pictures, each times the weight of its label: so parts of a batch add up to the whole of it.

    torch's own `weight` would divide by the sum of a part's weights instead.
    """
    if weights is None:
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)
    return (F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none") * weights[labels]).mean()


def soft_targets(labels: Tensor, classes: int, share: float, smoothing: float) -> Tensor:
    """(N, classes), float32: `smoothing` spread over all classes, the rest on the label; then mixed."""
    off = smoothing / classes
    hit = labels[:, None] == torch.arange(classes, device=labels.device)
    own = torch.where(hit, 1 - smoothing + off, off)
    return own if share == 1 else share * own + (1 - share) * own.flip(0)

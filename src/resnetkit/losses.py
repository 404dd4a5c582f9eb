"""The loss of a batch whose pictures may be mixed with those of the batch in reverse order (`mixing`).

Where classes are of unlike size, `Balance` makes up for it in the loss; `loader.evenly` does in what is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
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

"""The loss of a batch whose pictures may be mixed with those of the batch in reverse order (`mixing`)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from resnetkit.recipe import Optim


def classification_loss(logits: Tensor, labels: Tensor, share: float, recipe: Optim) -> Tensor:
    """The mean loss of logits (N, classes) for labels (N,), of which each picture shows `share`, and 1 - share of the
    labels reversed.

    "cross-entropy" is that of softmax. "bce" is binary cross-entropy of each class on its own, averaged over pictures
    and classes, as in timm's BinaryCrossEntropy and arXiv 2110.00476; see `soft_targets` and `target_threshold`.
    """
    if recipe.loss == "bce":
        targets = soft_targets(labels, logits.shape[1], share, recipe.label_smoothing)
        if recipe.target_threshold:
            targets = (targets > recipe.target_threshold).float()
        return F.binary_cross_entropy_with_logits(logits, targets)
    loss = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
    if share < 1:
        other = F.cross_entropy(logits, labels.flip(0), label_smoothing=recipe.label_smoothing)
        loss = share * loss + (1 - share) * other
    return loss


def soft_targets(labels: Tensor, classes: int, share: float, smoothing: float) -> Tensor:
    """(N, classes), float32: `smoothing` spread over all classes, the rest on the label; then mixed."""
    off = smoothing / classes
    hit = labels[:, None] == torch.arange(classes, device=labels.device)
    own = torch.where(hit, 1 - smoothing + off, off)
    return own if share == 1 else share * own + (1 - share) * own.flip(0)

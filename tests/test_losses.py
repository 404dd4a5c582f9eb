"""Cross-entropy and BCE of mixed batches, against timm's losses, mixing and label smoothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from resnetkit.losses import classification_loss, soft_targets
from resnetkit.recipe import Optim
from torchvision_shim import peer

CE, BCE = Optim(), Optim(loss="bce")
LABELS = torch.tensor([0, 3, 3, 6, 1, 2])


def logits() -> torch.Tensor:
    return 3 * torch.randn(6, 7, generator=torch.Generator().manual_seed(0))


def mixed_by_timm(share: float, smoothing: float) -> torch.Tensor:
    targets: torch.Tensor = peer("timm.data.mixup").mixup_target(LABELS, 7, lam=share, smoothing=smoothing)
    return targets


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("share", [1.0, 0.85, 0.5, 0.1])
def test_soft_targets_are_timms(share: float, smoothing: float) -> None:
    torch.testing.assert_close(soft_targets(LABELS, 7, share, smoothing), mixed_by_timm(share, smoothing))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("share", [1.0, 0.85, 0.5, 0.1])
def test_cross_entropy_is_timms_of_soft_targets(share: float, smoothing: float) -> None:
    theirs = peer("timm.loss").SoftTargetCrossEntropy()(logits(), mixed_by_timm(share, smoothing))
    mine = classification_loss(logits(), LABELS, share, replace(CE, label_smoothing=smoothing))
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("threshold", [0.0, 0.2])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("share", [1.0, 0.85, 0.5, 0.1])
def test_bce_is_timms(share: float, smoothing: float, threshold: float) -> None:
    """The loss and its gradient: the mean over pictures and classes."""
    loss = peer("timm.loss").BinaryCrossEntropy(smoothing=smoothing, target_threshold=threshold or None)
    a, b = logits().requires_grad_(), logits().requires_grad_()
    theirs = loss(b, LABELS if share == 1 else mixed_by_timm(share, smoothing))
    mine = classification_loss(a, LABELS, share, replace(BCE, label_smoothing=smoothing, target_threshold=threshold))
    torch.testing.assert_close(mine, theirs)
    torch.autograd.backward([mine, theirs])
    torch.testing.assert_close(a.grad, b.grad)


def test_thresholded_targets_are_ones_for_what_can_be_seen() -> None:
    """Of two mixed pictures both labels count in full from a fifth on: the loss wants both."""
    recipe = replace(BCE, target_threshold=0.2)
    seen = torch.full((2, 3), -20.0)
    seen[0, [0, 1]] = 20.0
    seen[1, [0, 1]] = 20.0
    assert classification_loss(seen, torch.tensor([0, 1]), 0.6, recipe) < 1e-6
    assert classification_loss(seen, torch.tensor([0, 1]), 0.9, recipe) > 1
    assert classification_loss(seen, torch.tensor([0, 1]), 0.6, BCE) > 1  # 0.6 and 0.4 are wanted


def test_bce_of_one_picture_by_hand() -> None:
    """-(log s(2) + log(1 - s(-1)) + log(1 - s(0.5))) / 3 with s the logistic function."""
    loss = classification_loss(torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([0]), 1.0, BCE)
    assert loss.item() == pytest.approx((0.126928 + 0.313262 + 0.974077) / 3, abs=1e-6)

"""Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899) on a batch that is on its device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from resnetkit.recipe import Augment


def mixed(x: Tensor, augment: Augment, draw: np.random.Generator) -> tuple[Tensor, float]:
    """Pictures (N, C, H, W) blended with the batch in reverse order, and the share that each keeps of itself.

    The loss is share * loss(labels) + (1 - share) * loss(labels reversed). With both kinds on, a fair coin decides.
    """
    kinds = [kind for kind, alpha in (("mixup", augment.mixup), ("cutmix", augment.cutmix)) if alpha > 0]
    if not kinds:
        return x, 1.0
    kind = kinds[int(draw.integers(len(kinds)))]
    alpha = augment.mixup if kind == "mixup" else augment.cutmix
    share = float(draw.beta(alpha, alpha))
    if kind == "mixup":
        return torch.lerp(x.flip(0), x, share), share
    return cut(x, share, float(draw.random()), float(draw.random()))


def cut(x: Tensor, share: float, across: float, down: float) -> tuple[Tensor, float]:
    """Replace a box of area 1 - share around (across, down), cut at the border, and count the share that is left."""
    height, width = x.shape[-2:]
    half_height, half_width = (round(side * (1 - share) ** 0.5 / 2) for side in (height, width))
    row, column = int(down * height), int(across * width)
    top, bottom = max(0, row - half_height), min(height, row + half_height)
    left, right = max(0, column - half_width), min(width, column + half_width)
    out = x.clone()
    out[..., top:bottom, left:right] = x.flip(0)[..., top:bottom, left:right]
    return out, 1 - (bottom - top) * (right - left) / (height * width)

"""What is drawn for a whole batch: mixup (arXiv 1710.09412), CutMix (1905.04899), stochastic depth (1603.09382)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from resnetkit.model import ResNet
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


def thin(network: ResNet, rate: float, draw: np.random.Generator) -> None:
    """Draw the blocks that this batch skips: block l of L with probability rate * l / L.

    What the others respond is divided by their probability to stay, so that evaluation, where all of them work, sees
    the same sum on average and needs to know nothing of it.
    """
    blocks = network.blocks
    for number, (block, chance) in enumerate(zip(blocks, draw.random(len(blocks)), strict=True), start=1):
        stays = 1 - rate * number / len(blocks)
        block.scale = 1 / stays if chance < stays else 0.0

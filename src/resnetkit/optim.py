"""Parameter groups, the learning rate as a function of progress, and averaged weights."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

from resnetkit.model import ResNet
from resnetkit.recipe import Optim, Schedule


def learning_rate(schedule: Schedule, highest: float, step: int, total: int, warmup: int) -> float:
    """The learning rate of step `step` of 0 … total - 1; no state, so a resumed run cannot get it wrong."""
    if step < warmup:
        rise = (step + 1) / warmup if schedule.warmup == "linear" else 0.0
        return highest * (schedule.warmup_start + (1 - schedule.warmup_start) * rise)
    if schedule.decay == "step":
        return highest * schedule.gamma ** sum(step >= milestone * total for milestone in schedule.milestones)
    return highest * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def parameter_groups(network: nn.Module, recipe: Optim) -> tuple[list[dict[str, object]], str]:
    """SGD's groups, chosen by what a parameter is and never by its name, and one line with their counts."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    decay = [p for p in parameters if recipe.decay_all or p.ndim > 1]
    plain = [p for p in parameters if not (recipe.decay_all or p.ndim > 1)]
    groups: list[dict[str, object]] = [{"params": decay, "weight_decay": recipe.weight_decay}]
    if plain:
        groups.append({"params": plain, "weight_decay": 0.0})
    counts = [f"{len(group)} tensors, {sum(p.numel() for p in group):,} values" for group in (decay, plain)]
    return groups, f"weight decay: {counts[0]}; none: {counts[1]}"


def make_sgd(network: nn.Module, recipe: Optim) -> torch.optim.SGD:
    """SGD with momentum; fused, which is one pass over each parameter instead of three."""
    groups, _ = parameter_groups(network, recipe)
    return torch.optim.SGD(groups, lr=float(recipe.lr), momentum=recipe.momentum, nesterov=recipe.nesterov, fused=True)


def freeze_backbone(network: ResNet) -> None:
    """Leave only the dense layer trainable. `train_mode` then keeps the statistics of the frozen part."""
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith("fc."))


def train_mode(network: ResNet, recipe: Optim) -> None:
    """Training mode; a frozen backbone stays in evaluation mode, or its batch statistics would go on moving."""
    network.train(recipe.freeze == "none")


class Averaged:
    """The exponential moving average of weights and batch statistics: a += (1 - decay) (w - a) after each step."""

    def __init__(self, network: ResNet, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, network: ResNet, step: int) -> None:
        """Early on the decay is smaller, (1 + step) / (10 + step), or the random start would linger."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        ours, theirs = list(self.network.state_dict().values()), list(network.state_dict().values())
        floats = [index for index, tensor in enumerate(ours) if tensor.is_floating_point()]
        torch._foreach_lerp_([ours[i] for i in floats], [theirs[i] for i in floats], weight)
        for mine, other in zip(ours, theirs, strict=True):
            if not mine.is_floating_point():
                mine.copy_(other)

"""The optimizer and its parameter groups, the learning rate as a function of progress, and averaged weights."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from resnetkit.lamb import Lamb
from resnetkit.model import Architecture, ResNet
from resnetkit.recipe import Optim, Schedule

BUFFERS = ("momentum", "square")  # what optimizers keep of each parameter, in its state as "momentum_buffer" and so on


def learning_rate(schedule: Schedule, highest: float, step: int, total: int, warmup: int) -> float:
    """The learning rate of step `step` of 0 … total - 1; no state, so a resumed run cannot get it wrong."""
    if step < warmup:
        rise = (step + 1) / warmup if schedule.warmup == "linear" else 0.0
        return highest * (schedule.warmup_start + (1 - schedule.warmup_start) * rise)
    if schedule.decay == "step":
        return highest * schedule.gamma ** sum(step >= milestone * total for milestone in schedule.milestones)
    return highest * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def part_names(arch: Architecture) -> list[str]:
    """What a network is made of, from the input to the output: stem, layer1, layer2, …, fc."""
    return ["stem", *(f"layer{number}" for number, _ in enumerate(arch.blocks, start=1)), "fc"]


def parts(network: ResNet) -> dict[str, list[nn.Module]]:
    """The modules of each part; a normalisation after the last stage belongs to that stage."""
    stages: list[list[nn.Module]] = [[stage] for _, stage in network.stages]
    if network.norm is not None:
        stages[-1].append(network.norm)
    return dict(zip(part_names(network.arch), [[network.conv1, network.bn1], *stages, [network.fc]], strict=True))


def frozen_parts(arch: Architecture, freeze: str) -> list[str]:
    """The names of the parts that do not learn: from the input up to and including `freeze`."""
    *backbone, _ = part_names(arch)
    if freeze in ("none", "backbone"):
        return backbone if freeze == "backbone" else []
    return backbone[: backbone.index(freeze) + 1]


def freeze_parts(network: ResNet, freeze: str) -> None:
    """Take the gradients from the parts that do not learn. `train_mode` then keeps their statistics."""
    for name in frozen_parts(network.arch, freeze):
        for module in parts(network)[name]:
            module.requires_grad_(False)


def train_mode(network: ResNet, recipe: Optim) -> None:
    """Training mode; frozen parts stay in evaluation mode, or their batch statistics would go on moving."""
    network.train()
    for name in frozen_parts(network.arch, recipe.freeze):
        for module in parts(network)[name]:
            module.eval()


def layer_factors(network: ResNet, decay: float) -> dict[str, float]:
    """What the learning rate of each part is multiplied by: 1 in the dense layer, `decay` a part further down."""
    return {name: decay**step for step, name in enumerate(reversed(part_names(network.arch)))}


def learning(modules: list[nn.Module]) -> list[nn.Parameter]:
    """The parameters that are not frozen."""
    return [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]


def parameter_groups(network: ResNet, recipe: Optim) -> tuple[list[dict[str, object]], str]:
    """The optimizer's groups, chosen by what a parameter is and where, never by name, and one line with their counts.

    `factor` of a group multiplies the learning rate of every step.
    """
    layers: dict[str, list[nn.Module]] = {"all": [network]}
    factors = {"all": 1.0}
    if recipe.layer_decay != 1:
        layers, factors = parts(network), layer_factors(network, recipe.layer_decay)
    groups: list[dict[str, object]] = []
    counted: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, modules in layers.items():
        for decays in (True, False):
            members = [p for p in learning(modules) if (recipe.decay_all or p.ndim > 1) is decays]
            counted[decays] += members
            if members:
                decay = recipe.weight_decay if decays else 0.0
                groups.append({"params": members, "weight_decay": decay, "factor": factors[name]})
    about = [f"weight decay: {tensors(counted[True])}; none: {tensors(counted[False])}"]
    if recipe.layer_decay != 1:
        own = {name: learning(layers[name]) for name in reversed(layers)}
        rates = [f"{factors[name]:.3g} in {name} ({tensors(members)})" for name, members in own.items() if members]
        about.append(f"learning rate times {', '.join(rates)}")
    if recipe.freeze != "none":
        still = [parameter for parameter in network.parameters() if not parameter.requires_grad]
        about.append(f"frozen: {', '.join(frozen_parts(network.arch, recipe.freeze))} ({tensors(still)})")
    return groups, "; ".join(about)


def tensors(parameters: list[nn.Parameter]) -> str:
    """How many they are."""
    return f"{len(parameters)} tensors, {sum(p.numel() for p in parameters):,} values"


def make_optimizer(network: ResNet, recipe: Optim) -> torch.optim.Optimizer:
    """LAMB, or SGD with momentum; SGD is fused, which is one pass over each parameter instead of three.

    "lbfgs" takes no steps here: see `head`.
    """
    groups, _ = parameter_groups(network, recipe)
    if recipe.optimizer == "lamb":
        return Lamb(groups, lr=float(recipe.lr), momentum=recipe.momentum)
    return torch.optim.SGD(groups, lr=float(recipe.lr), momentum=recipe.momentum, nesterov=recipe.nesterov, fused=True)


def buffers(optimizer: torch.optim.Optimizer, network: ResNet) -> dict[str, Tensor]:
    """What the optimizer keeps, by name, such as `momentum.fc.weight`; nothing before the first step."""
    kept: dict[str, Tensor | None] = {}
    for name, parameter in network.named_parameters():
        state = optimizer.state.get(parameter, {})
        kept |= {f"{kind}.{name}": state.get(f"{kind}_buffer") for kind in BUFFERS}
    return {name: tensor for name, tensor in kept.items() if tensor is not None}


def restore_buffers(optimizer: torch.optim.Optimizer, network: ResNet, tensors: dict[str, Tensor], step: int) -> None:
    """The inverse of `buffers` after `step` steps; other names are passed over."""
    for name, parameter in network.named_parameters():
        for kind in BUFFERS:
            if (tensor := tensors.get(f"{kind}.{name}")) is not None:
                like = torch.empty_like(parameter)  # the parameter's own memory layout
                optimizer.state[parameter][f"{kind}_buffer"] = like.copy_(tensor)
    for group in optimizer.param_groups:
        if "step" in group:
            group["step"] = step


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

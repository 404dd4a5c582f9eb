"""Layers, parameters and multiply-adds of a network, counted on torch's meta device: shapes flow, numbers do not.

One multiply-add is one multiplication and one addition (2 FLOPs); the paper's "FLOPs" and torchvision's "GFLOPS" are
multiply-adds. Counted are the convolutions, projections among them, and the dense layer, for one picture. Batch
normalisation, ReLU, pooling and the addition of the shortcut are not: together they are below 1 % of ResNet-50.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from resnetkit.errors import UserError
from resnetkit.model import Architecture, ResNet

Shape = tuple[int, int, int]  # (C, H, W)


@dataclass(frozen=True)
class Stage:
    """One row of the paper's Table 1. The parameters include those of batch normalisation."""

    name: str
    output: Shape
    blocks: int  # 0 for the stem and the dense layer
    parameters: int
    multiply_adds: int


@dataclass(frozen=True)
class Complexity:
    """A network's size at one input size. The stages' parameters and multiply-adds sum to the totals."""

    architecture: Architecture
    input: Shape
    layers: int  # weighted layers as the paper counts them: convolutions and the dense layer, without projections
    parameters: int
    multiply_adds: int
    stages: tuple[Stage, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they stand in JSON."""
        return asdict(self)


def traits(arch: Architecture) -> dict[str, str]:
    """In what a network differs from the usual one of its blocks (projections where it grows, stride in the 3x3):
    the field of Architecture, and words for it."""
    usual = Architecture(arch.name, arch.block, arch.blocks, stride=arch.stride if arch.block == "basic" else "3x3")
    words = {
        "stem_stride": f"stem stride {arch.stem_stride}",
        "width": f"{arch.width} channels in the stem",
        "channels": f"{arch.channels} input channels",
        "shortcut": "no shortcuts" if arch.shortcut == "none" else f"shortcut {arch.shortcut}",
        "stride": f"stride in the {arch.stride}",
        "groups": f"{arch.groups} groups",
        "base_width": f"base width {arch.base_width}",
        "preactivation": "pre-activation",
        "norm": "no normalisation",
        "stem": "deep stem",
        "downsample": "average pooling before projections",
        "se": "squeeze and excitation",
        "pool": "max pool without padding",
        "stem_bias": "bias in the stem",
    }
    return {key: text for key, text in words.items() if getattr(arch, key) != getattr(usual, key)}


def count(arch: Architecture, size: int | tuple[int, int]) -> Complexity:
    """The complexity at `size` pixels, a square's side or (height, width). Allocates no weights, draws no numbers.

    The stages are conv1, conv2_x … conv5_x (layer1 … for the CIFAR networks, whose stages the paper gives no names)
    and fc. The max pool opens conv2_x, as in Table 1, so that conv1 gives 112x112 at 224. Raises UserError for a size
    below 1.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise UserError(f"size {height}x{width}: both sides must be at least 1 pixel")
    with torch.device("meta"):
        network = ResNet(arch).eval()  # eval: batch statistics of a single 1x1 response would be refused
        pictures = torch.empty(1, arch.channels, height, width)
    shapes = output_shapes(network, pictures)
    stem = nn.ModuleList([network.conv1, network.bn1])
    rows: list[tuple[str, nn.Module, Shape, int]] = [("conv1", stem, shapes[network.conv1], 0)]
    for index, (name, stage) in enumerate(network.stages):
        paper_name = f"conv{index + 2}_x" if len(arch.blocks) == 4 else name
        rows.append((paper_name, stage, shapes[stage], arch.blocks[index]))
    rows.append(("fc", network.fc, shapes[network.fc], 0))
    stages = tuple(
        Stage(name, shape, blocks, parameters(part), multiply_adds(part, shapes)) for name, part, shape, blocks in rows
    )
    return Complexity(
        architecture=arch,
        input=(arch.channels, height, width),
        layers=weighted_layers(network),
        parameters=parameters(network),
        multiply_adds=multiply_adds(network, shapes),
        stages=stages,
    )


def output_shapes(network: nn.Module, pictures: Tensor) -> dict[nn.Module, Shape]:
    """What each module gives for one picture, as (C, H, W); (C, 1, 1) for the dense layer. Runs `network` once."""
    shapes: dict[nn.Module, Shape] = {}

    def note(module: nn.Module, _inputs: object, output: Tensor) -> None:
        channels, height, width = (*output.shape[1:], 1, 1)[:3]
        shapes[module] = (channels, height, width)

    hooks = [module.register_forward_hook(note) for module in network.modules()]
    with torch.no_grad():
        network(pictures)
    for hook in hooks:
        hook.remove()
    return shapes


def parameters(part: nn.Module) -> int:
    """Trained numbers: weights and biases, not the running statistics."""
    return sum(tensor.numel() for tensor in part.parameters())


def multiply_adds(part: nn.Module, shapes: dict[nn.Module, Shape]) -> int:
    """Each output of a convolution or dense layer costs one multiply-add per weight of its filter."""
    layers = [module for module in part.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    return sum(prod(shapes[layer]) * layer.weight[0].numel() for layer in layers)


def weighted_layers(network: ResNet) -> int:
    """The depth in the network's name: 152 = 1 + 3 x (3 + 8 + 36 + 3) + 1; a deep stem adds two.

    Projections and squeeze-and-excitation run beside, not in depth.
    """
    aside = [part for block in network.blocks for part in (block.downsample, block.se) if part is not None]
    beside = {layer for part in aside for layer in part.modules()}
    return sum(isinstance(part, nn.Conv2d | nn.Linear) and part not in beside for part in network.modules())

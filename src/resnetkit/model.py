"""The networks of "Deep Residual Learning for Image Recognition" (arXiv 1512.03385). Needs torch and nothing else.

Table 1, ImageNet: a 7x7/64 stem with stride 2, a 3x3 max pool with stride 2, four stages of blocks, global average
pooling, a dense layer. Sec. 4.2, CIFAR-10: a 3x3/16 stem, three stages of n basic blocks, 6n+2 weighted layers.

Where implementations differ, and what stands here:

  shortcut    where the dimension grows: "A" zero-padded identity, "B" 1x1 projection, "C" projections everywhere,
              "none" no shortcut at all, which is the paper's plain network. Default: B, and A for the CIFAR networks.
  stride      of a bottleneck: in its first 1x1 ("1x1", the paper, "v1") or in its 3x3 ("3x3", everyone since, "v1.5").
  zero_gamma  the last batch normalisation of a block starts at 0 (arXiv 1706.02677). Default: off, as in the paper.
  stem_stride 4: 7x7/2 and 3x3/2 max pool; 2: 3x3/2; 1: 3x3/1, for small pictures. Default: 4, and 1 for CIFAR.
  option A    the paper does not say where the zero channels go; here half before and half after the identity, as in
              the published CIFAR weights.
  preactivation  batch normalisation and ReLU stand before each convolution instead of after it, and nothing comes
              after the addition (arXiv 1603.05027, "full pre-activation"). Default: off.
  norm        "batch", or "none" for a network without normalisation, whose convolutions then have biases.
  init        "he" (std sqrt(2 / fan), arXiv 1502.01852), "xavier" (std sqrt(2 / (fan in + fan out))) or "small"
              (std 0.01 everywhere, as in AlexNet).

Module names are torchvision's, so that published weights load with `strict=True`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Shortcut = Literal["A", "B", "C", "none"]
BlockStride = Literal["1x1", "3x3"]
StemStride = Literal[4, 2, 1]
Norm = Literal["batch", "none"]
Init = Literal["he", "xavier", "small"]

# Table 1: blocks per stage conv2_x, conv3_x, conv4_x, conv5_x.
IMAGENET_DEPTHS: dict[int, tuple[Literal["basic", "bottleneck"], tuple[int, ...]]] = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}


@dataclass(frozen=True)
class Architecture:
    """Everything that decides the network's shape; a model file stores exactly this."""

    name: str
    block: Literal["basic", "bottleneck"]
    blocks: tuple[int, ...]  # per stage
    width: int  # channels of the stem and of the first stage's 3x3 convolutions; doubles from stage to stage
    stem_stride: StemStride
    shortcut: Shortcut
    stride: BlockStride
    zero_gamma: bool
    classes: int
    channels: int
    preactivation: bool = False
    norm: Norm = "batch"
    init: Init = "he"


def architecture(
    name: str,
    *,
    classes: int = 1000,
    channels: int = 3,
    shortcut: Shortcut | None = None,
    stride: BlockStride = "3x3",
    stem_stride: StemStride | None = None,
    zero_gamma: bool = False,
    preactivation: bool = False,
    norm: Norm = "batch",
    init: Init = "he",
) -> Architecture:
    """The architecture called `resnet18 … resnet152`, `plain18 …`, `resnet20-cifar …` or `plain20-cifar …`.

    `None` means the name's own default. Raises ValueError, naming argument, value and what is allowed.
    """
    match = re.fullmatch(r"(resnet|plain)([1-9]\d{0,4})(-cifar)?", name)
    if not match:
        raise ValueError(f"architecture {name!r}: choose from {_names()}")
    family, depth, cifar = match[1], int(match[2]), bool(match[3])
    if cifar and depth not in range(8, 1203, 6):
        raise ValueError(f"architecture {name!r}: a CIFAR network has 6n+2 layers: 8, 14, 20, 32, 44, 56, 110, 1202")
    if not cifar and depth not in IMAGENET_DEPTHS:
        raise ValueError(f"architecture {name!r}: choose from {_names()}")
    if family == "plain" and shortcut not in (None, "none"):
        raise ValueError(f"shortcut={shortcut!r}: {name} is a network without shortcuts; take resnet{name[5:]}")
    block, blocks = ("basic", (depth // 6,) * 3) if cifar else IMAGENET_DEPTHS[depth]
    default_shortcut: Shortcut = "none" if family == "plain" else "A" if cifar else "B"
    result = Architecture(
        name=name,
        block="basic" if block == "basic" else "bottleneck",
        blocks=blocks,
        width=16 if cifar else 64,
        stem_stride=(1 if cifar else 4) if stem_stride is None else stem_stride,
        shortcut=default_shortcut if shortcut is None else shortcut,
        stride=stride,
        zero_gamma=zero_gamma,
        classes=classes,
        channels=channels,
        preactivation=preactivation,
        norm=norm,
        init=init,
    )
    _check(result)
    return result


def _names() -> str:
    """The names in the order a person looks for them, for error messages."""
    imagenet = [f"resnet{depth}" for depth in IMAGENET_DEPTHS]
    return ", ".join([*imagenet, "plain18, plain34, resnet20-cifar, plain20-cifar (any 6n+2 up to 1202)"])


def _check(arch: Architecture) -> None:
    for key, value, allowed in (
        ("shortcut", arch.shortcut, ("A", "B", "C", "none")),
        ("stride", arch.stride, ("1x1", "3x3")),
        ("stem_stride", arch.stem_stride, (4, 2, 1)),
        ("norm", arch.norm, ("batch", "none")),
        ("init", arch.init, ("he", "xavier", "small")),
    ):
        if value not in allowed:
            raise ValueError(f"{key}={value!r}: choose from {', '.join(map(str, allowed))}")
    if arch.zero_gamma and arch.shortcut == "none":
        raise ValueError("zero_gamma=True: without shortcuts it would make every response zero; set it to False")
    if arch.zero_gamma and (arch.norm == "none" or arch.preactivation):
        raise ValueError("zero_gamma=True: there is no batch normalisation at the end of a block here; set it to False")
    for key, number in (("classes", arch.classes), ("channels", arch.channels)):
        if number < 1:
            raise ValueError(f"{key}={number}: must be at least 1")


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, *, norm: Norm = "batch") -> nn.Conv2d:
    """A convolution that keeps the size at stride 1; no bias where batch normalisation follows, which has one."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=norm == "none")


def make_norm(channels: int, norm: Norm) -> nn.Module:
    """What follows a convolution, or with preactivation goes before it."""
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.Identity()


class ZeroPad(nn.Module):
    """Option A: every stride-th pixel, zero channels around it. (N, C, H, W) to (N, C + extra, H / stride, …)."""

    def __init__(self, extra: int, stride: int) -> None:
        super().__init__()
        self.before, self.after, self.stride = extra // 2, extra - extra // 2, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


def make_shortcut(arch: Architecture, inputs: int, outputs: int, stride: int) -> nn.Module | None:
    """What the input passes through before it is added; None for the plain identity."""
    grows = stride != 1 or inputs != outputs
    if arch.shortcut == "none" or (arch.shortcut != "C" and not grows):
        return None
    if arch.shortcut == "A":
        return ZeroPad(outputs - inputs, stride)
    project = conv(inputs, outputs, 1, stride, norm=arch.norm)
    return project if arch.preactivation else nn.Sequential(project, make_norm(outputs, arch.norm))


class Block(nn.Module):
    """relu(F(x) + shortcut(x)); without shortcut relu(F(x)); with preactivation F(x) + shortcut(x).

    `scale` multiplies F(x) in training and 0 skips it, for stochastic depth (arXiv 1603.09382).
    """

    expansion: int
    depth: int  # convolutions of F

    def __init__(self, inputs: int, sizes: list[tuple[int, int, int]], arch: Architecture) -> None:
        """`sizes` holds (kernel, output channels, stride) of each convolution of F."""
        super().__init__()
        channels = inputs
        for index, (kernel, outputs, stride) in enumerate(sizes, start=1):
            self.add_module(f"conv{index}", conv(channels, outputs, kernel, stride, norm=arch.norm))
            self.add_module(f"bn{index}", make_norm(channels if arch.preactivation else outputs, arch.norm))
            channels = outputs
        self.relu = nn.ReLU(inplace=True)
        self.downsample = make_shortcut(arch, inputs, channels, math.prod(stride for _, _, stride in sizes))
        self.residual, self.preactivation, self.scale = arch.shortcut != "none", arch.preactivation, 1.0

    @property
    def layers(self) -> list[tuple[nn.Module, nn.Module]]:
        """F's convolutions in order, each with its normalisation."""
        pairs = range(1, self.depth + 1)
        return [(self.get_submodule(f"conv{i}"), self.get_submodule(f"bn{i}")) for i in pairs]

    @property
    def skipped(self) -> bool:
        """Whether this batch passes by F: its normalisations then do not see it."""
        return self.residual and self.training and self.scale == 0

    def forward(self, x: Tensor) -> Tensor:
        return self.preactivated(x) if self.preactivation else self.postactivated(x)

    def postactivated(self, x: Tensor) -> Tensor:
        *first, (last, last_norm) = self.layers
        shortcut = x if self.downsample is None else self.downsample(x)
        if self.skipped:
            out: Tensor = F.relu(shortcut)
            return out
        for convolution, norm in first:
            x = self.relu(norm(convolution(x)))
        x = last_norm(last(x))
        return self.relu(self.joined(x, shortcut))  # type: ignore[no-any-return]

    def preactivated(self, x: Tensor) -> Tensor:
        if self.skipped and self.downsample is None:
            return x
        shortcut: Tensor = x
        for index, (convolution, norm) in enumerate(self.layers):
            x = F.relu(norm(x))
            if index == 0 and self.downsample is not None:
                shortcut = self.downsample(x)  # both ways begin from the activated input where the dimension grows
                if self.skipped:
                    return shortcut
            x = convolution(x)
        return self.joined(x, shortcut)

    def joined(self, response: Tensor, shortcut: Tensor) -> Tensor:
        """F(x) + shortcut(x), or F(x) alone in a plain network."""
        if not self.residual:
            return response
        if self.training and self.scale != 1:
            response *= self.scale
        response += shortcut
        return response


class BasicBlock(Block):
    """F = conv3x3, BN, ReLU, conv3x3, BN."""

    expansion, depth = 1, 2

    def __init__(self, inputs: int, width: int, stride: int, arch: Architecture) -> None:
        super().__init__(inputs, [(3, width, stride), (3, width, 1)], arch)


class Bottleneck(Block):
    """F = conv1x1, BN, ReLU, conv3x3, BN, ReLU, conv1x1 to 4 x width, BN."""

    expansion, depth = 4, 3

    def __init__(self, inputs: int, width: int, stride: int, arch: Architecture) -> None:
        first, second = (stride, 1) if arch.stride == "1x1" else (1, stride)
        super().__init__(inputs, [(1, width, first), (3, width, second), (1, 4 * width, 1)], arch)


class ResNet(nn.Module):
    """The network of an `Architecture`: (N, channels, H, W) pictures to (N, classes) logits.

    `stages` holds (name, module) in order; each stage but the first halves the resolution.
    """

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        _check(arch)
        self.arch = arch
        kernel = 7 if arch.stem_stride == 4 else 3
        self.conv1 = conv(arch.channels, arch.width, kernel, min(arch.stem_stride, 2), norm=arch.norm)
        self.bn1 = nn.Identity() if arch.preactivation else make_norm(arch.width, arch.norm)
        self.relu = nn.Identity() if arch.preactivation else nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if arch.stem_stride == 4 else nn.Identity()
        inputs = arch.width
        for index, blocks in enumerate(arch.blocks):
            stage, inputs = make_stage(arch, inputs, arch.width << index, blocks, stride=1 if index == 0 else 2)
            self.add_module(f"layer{index + 1}", stage)
        # With preactivation nothing has yet normalised and activated what leaves the last block.
        self.norm = nn.Sequential(make_norm(inputs, arch.norm), nn.ReLU(inplace=True)) if arch.preactivation else None
        self.fc = nn.Linear(inputs, arch.classes)
        self.initialise()

    @property
    def stages(self) -> list[tuple[str, nn.Module]]:
        return [(name, module) for name, module in self.named_children() if name.startswith("layer")]

    @property
    def blocks(self) -> list[Block]:
        """All blocks, from the stem to the dense layer."""
        return [module for module in self.modules() if isinstance(module, Block)]

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Channels of each of the maps of `features`."""
        expansion = self.blocks[0].expansion
        return tuple((self.arch.width << index) * expansion for index in range(len(self.arch.blocks)))

    @property
    def feature_strides(self) -> tuple[int, ...]:
        """Pixels of the input per pixel of each map: 4, 8, 16, 32 with the ImageNet stem, 1, 2, 4 for CIFAR."""
        return tuple(self.arch.stem_stride << index for index in range(len(self.arch.blocks)))

    def features(self, x: Tensor) -> list[Tensor]:
        """The maps that leave the stages, as detectors and segmenters use them (Sec. 4.3): (N, channels, H/s, W/s)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))  # (N, 64, H/4, W/4) with the ImageNet stem
        maps = []
        for _, stage in self.stages:
            x = stage(x)
            maps.append(x)
        if self.norm is not None:
            maps[-1] = self.norm(x)
        return maps

    def embed(self, x: Tensor) -> Tensor:
        """One vector per picture, what the dense layer sees: global average pooling, (N, C, H, W) to (N, C)."""
        return self.features(x)[-1].mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.embed(x))
        return logits

    @torch.no_grad()
    def initialise(self) -> None:
        """Draw all weights anew as `arch.init` says; He's fan is fan_out for convolutions, fan_in for the dense."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                self._draw(module)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
        if self.arch.zero_gamma:
            for block in self.blocks:
                nn.init.zeros_(block.get_parameter(f"bn{block.depth}.weight"))

    def _draw(self, module: nn.Conv2d | nn.Linear) -> None:
        if self.arch.init == "xavier":
            nn.init.xavier_normal_(module.weight)
        elif self.arch.init == "small":
            nn.init.normal_(module.weight, std=0.01)
        else:
            fan: Literal["fan_in", "fan_out"] = "fan_out" if isinstance(module, nn.Conv2d) else "fan_in"
            nn.init.kaiming_normal_(module.weight, mode=fan, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def make_stage(arch: Architecture, inputs: int, width: int, blocks: int, stride: int) -> tuple[nn.Sequential, int]:
    """One of conv2_x … conv5_x and the number of channels that leave it; only the first block strides."""
    block = BasicBlock if arch.block == "basic" else Bottleneck
    stage = []
    for index in range(blocks):
        stage.append(block(inputs, width, stride if index == 0 else 1, arch))
        inputs = width * block.expansion
    return nn.Sequential(*stage), inputs

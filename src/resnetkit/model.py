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

Module names are torchvision's, so that published weights load with `strict=True`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Shortcut = Literal["A", "B", "C", "none"]
BlockStride = Literal["1x1", "3x3"]
StemStride = Literal[4, 2, 1]

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


def architecture(
    name: str,
    *,
    classes: int = 1000,
    channels: int = 3,
    shortcut: Shortcut | None = None,
    stride: BlockStride = "3x3",
    stem_stride: StemStride | None = None,
    zero_gamma: bool = False,
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
    ):
        if value not in allowed:
            raise ValueError(f"{key}={value!r}: choose from {', '.join(map(str, allowed))}")
    if arch.zero_gamma and arch.shortcut == "none":
        raise ValueError("zero_gamma=True: without shortcuts it would make every response zero; set it to False")
    for key, number in (("classes", arch.classes), ("channels", arch.channels)):
        if number < 1:
            raise ValueError(f"{key}={number}: must be at least 1")


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution that keeps the size at stride 1; no bias, because batch normalisation follows."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


class ZeroPad(nn.Module):
    """Option A: every stride-th pixel, zero channels around it. (N, C, H, W) to (N, C + extra, H / stride, …)."""

    def __init__(self, extra: int, stride: int) -> None:
        super().__init__()
        self.before, self.after, self.stride = extra // 2, extra - extra // 2, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


def make_shortcut(option: Shortcut, inputs: int, outputs: int, stride: int) -> nn.Module | None:
    """What the input passes through before it is added; None for the plain identity."""
    grows = stride != 1 or inputs != outputs
    if option == "none" or (option != "C" and not grows):
        return None
    if option == "A":
        return ZeroPad(outputs - inputs, stride)
    return nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """relu(F(x) + shortcut(x)), F = conv3x3, BN, ReLU, conv3x3, BN. Without shortcut: relu(F(x))."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, arch: Architecture) -> None:
        super().__init__()
        self.conv1 = conv(inputs, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = make_shortcut(arch.shortcut, inputs, width, stride)
        self.residual = arch.shortcut != "none"

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.residual:
            y += x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu(y)
        return out

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        return self.bn2


class Bottleneck(nn.Module):
    """relu(F(x) + shortcut(x)), F = conv1x1, BN, ReLU, conv3x3, BN, ReLU, conv1x1 to 4 x width, BN."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, arch: Architecture) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = conv(inputs, width, 1, stride if arch.stride == "1x1" else 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride if arch.stride == "3x3" else 1)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = make_shortcut(arch.shortcut, inputs, outputs, stride)
        self.residual = arch.shortcut != "none"

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        if self.residual:
            y += x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu(y)
        return out

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        return self.bn3


class ResNet(nn.Module):
    """The network of an `Architecture`: (N, channels, H, W) pictures to (N, classes) logits.

    `stages` holds (name, module) in order; each stage but the first halves the resolution.
    """

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        _check(arch)
        self.arch = arch
        self.conv1 = (
            nn.Conv2d(arch.channels, arch.width, 7, 2, padding=3, bias=False)
            if arch.stem_stride == 4
            else conv(arch.channels, arch.width, 3, arch.stem_stride)
        )
        self.bn1 = nn.BatchNorm2d(arch.width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if arch.stem_stride == 4 else nn.Identity()
        inputs = arch.width
        for index, blocks in enumerate(arch.blocks):
            stage, inputs = make_stage(arch, inputs, arch.width << index, blocks, stride=1 if index == 0 else 2)
            self.add_module(f"layer{index + 1}", stage)
        self.fc = nn.Linear(inputs, arch.classes)
        self.initialise()

    @property
    def stages(self) -> list[tuple[str, nn.Module]]:
        return [(name, module) for name, module in self.named_children() if name.startswith("layer")]

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))  # (N, 64, H/4, W/4) with the ImageNet stem
        for _, stage in self.stages:
            x = stage(x)
        x = x.mean((2, 3))  # global average pooling: (N, C, H, W) to (N, C)
        logits: Tensor = self.fc(x)
        return logits

    @torch.no_grad()
    def initialise(self) -> None:
        """He initialisation (arXiv 1502.01852): std = sqrt(2 / fan), fan_out for convolutions, fan_in for the dense."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)
        if self.arch.zero_gamma:
            for module in self.modules():
                if isinstance(module, BasicBlock | Bottleneck):
                    nn.init.zeros_(module.last_norm.weight)


def make_stage(arch: Architecture, inputs: int, width: int, blocks: int, stride: int) -> tuple[nn.Sequential, int]:
    """One of conv2_x … conv5_x and the number of channels that leave it; only the first block strides."""
    block = BasicBlock if arch.block == "basic" else Bottleneck
    stage = []
    for index in range(blocks):
        stage.append(block(inputs, width, stride if index == 0 else 1, arch))
        inputs = width * block.expansion
    return nn.Sequential(*stage), inputs

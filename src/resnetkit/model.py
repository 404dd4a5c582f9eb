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
  stem        "single": one convolution; "deep": three of 3x3 (arXiv 1812.01187, "C").
  downsample  what strides in a projection: its 1x1 ("conv") or 2x2 average pooling before it ("pool", "D").
  groups      of a bottleneck's 3x3, each of base_width / 64 as many channels as the paper's one: 32 with base_width 4
              in ResNeXt-32x4d (arXiv 1611.05431), 1 with 128 in Wide ResNet-50-2 (arXiv 1605.07146). Default: 1, 64.
  se          squeeze and excitation before the addition (arXiv 1709.01507). Default: off.
  pool, stem_bias  the authors' Caffe models pool over ceil(side / 2) places without padding ("ceil", not "pad"), and
              the first convolution of their ResNet-50 has a bias.

Module names are torchvision's, those of `se` timm's, so that published weights load with `strict=True`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Literal["batch", "none"]

# Table 1: blocks per stage conv2_x, conv3_x, conv4_x, conv5_x; 26, 200 and 269 layers came later.
IMAGENET_DEPTHS: dict[int, tuple[str, tuple[int, ...]]] = {
    18: ("basic", (2, 2, 2, 2)),
    26: ("bottleneck", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
    200: ("bottleneck", (3, 24, 36, 3)),
    269: ("bottleneck", (3, 30, 48, 8)),
}
# The parts of a name, and what each stands for.
NAME = re.compile(r"(se)?(resnet|plain|resnext|wide_resnet)(v2_)?([1-9]\d{0,4})([cd])?(_\d+x\d+d|_2)?(-cifar|-caffe)?")
PARTS: dict[str | None, dict[str, Any]] = {
    "se": {"se": True},
    "v2_": {"preactivation": True},
    "c": {"stem": "deep"},
    "d": {"stem": "deep", "downsample": "pool"},
    "_2": {"base_width": 128},
    "-cifar": {"width": 16, "stem_stride": 1, "shortcut": "A"},
    "-caffe": {"stride": "1x1", "pool": "ceil"},
    "plain": {"shortcut": "none"},
}
NAMES = (
    "resnet18, 26, 34, 50, 101, 152, 200, resnet50d, resnext50_32x4d, wide_resnet50_2, seresnet50, resnetv2_50 and "
    "mixes of these, resnet50-caffe, plain18, plain34, resnet20-cifar, plain20-cifar (any 6n+2 up to 1202)"
)


@dataclass(frozen=True)
class Architecture:
    """Everything that decides the network's shape; a model file stores exactly this."""

    name: str
    block: Literal["basic", "bottleneck"]
    blocks: tuple[int, ...]  # per stage
    width: int = 64  # channels of the stem and of the first stage's 3x3 convolutions; doubles from stage to stage
    stem_stride: Literal[4, 2, 1] = 4
    shortcut: Literal["A", "B", "C", "none"] = "B"
    stride: Literal["1x1", "3x3"] = "3x3"
    zero_gamma: bool = False
    classes: int = 1000
    channels: int = 3
    preactivation: bool = False
    norm: Norm = "batch"
    init: Literal["he", "xavier", "small"] = "he"
    stem: Literal["single", "deep"] = "single"
    downsample: Literal["conv", "pool"] = "conv"
    groups: int = 1
    base_width: int = 64
    se: bool = False
    pool: Literal["pad", "ceil"] = "pad"
    stem_bias: bool = False


def architecture(name: str, **choices: Any) -> Architecture:
    """The architecture of a name as torchvision and timm write it, such as `resnet50d` or `seresnext101_32x8d`.

    The parts of a name: [se]resnet|resnext|wide_resnet|plain[v2_]DEPTH[c|d][_GROUPSxWIDTHd|_2][-cifar|-caffe].
    `choices` are other fields of Architecture and win over the name; None leaves a field as the name has it.
    Raises ValueError, naming argument, value and what is allowed.
    """
    match = NAME.fullmatch(name)
    kind, depth, tail, suffix = (match[2], int(match[4]), match[6], match[7]) if match else ("", 0, "", "")
    if suffix == "-cifar" and depth not in range(8, 1203, 6):
        raise ValueError(f"architecture {name!r}: a CIFAR network has 6n+2 layers: 8, 14, 20, 32, 44, 56, 110, 1202")
    fits = {"resnext": tail and tail != "_2", "wide_resnet": tail == "_2"}.get(kind, not tail)
    if not match or not fits or (suffix != "-cifar" and depth not in IMAGENET_DEPTHS):
        raise ValueError(f"architecture {name!r}: choose from {NAMES}")
    block, blocks = ("basic", (depth // 6,) * 3) if suffix == "-cifar" else IMAGENET_DEPTHS[depth]
    named: dict[str, Any] = {"block": block, "blocks": blocks, "stem_bias": suffix == "-caffe" and depth == 50}
    for part in (match[1], match[3], match[5], tail, suffix, kind):
        named |= PARTS.get(part, {})
    if kind == "resnext":
        named["groups"], named["base_width"] = map(int, tail[1:-1].split("x"))
    given = {key: value for key, value in choices.items() if value is not None}
    if unknown := given.keys() - {field.name for field in fields(Architecture)}:
        raise ValueError(f"{min(unknown)}={given[min(unknown)]!r}: an architecture has no such choice")
    if kind == "plain" and (wish := given.get("shortcut", "none")) != "none":
        raise ValueError(f"shortcut={wish!r}: {name} is a network without shortcuts; take resnet{name[5:]}")
    result = Architecture(name, **{**named, **given})
    _check(result)
    return result


def _check(arch: Architecture) -> None:
    for key, kind in get_type_hints(Architecture).items():
        value, allowed = getattr(arch, key), get_args(kind) if get_origin(kind) is Literal else ()
        if allowed and value not in allowed:
            raise ValueError(f"{key}={value!r}: choose from {', '.join(map(str, allowed))}")
        if kind is int and value < 1:
            raise ValueError(f"{key}={value}: must be at least 1")
    if arch.zero_gamma and arch.shortcut == "none":
        raise ValueError("zero_gamma=True: without shortcuts it would make every response zero; set it to False")
    if arch.zero_gamma and (arch.norm == "none" or arch.preactivation):
        raise ValueError("zero_gamma=True: there is no batch normalisation at the end of a block here; set it to False")
    if (arch.groups, arch.base_width) != (1, 64) and arch.block == "basic":
        raise ValueError(f"{arch.name}: groups and base_width are a bottleneck's; take 26 layers, 50 or more")


def inner_width(arch: Architecture, width: int) -> int:
    """Channels of a bottleneck's 3x3 in a stage of `width`."""
    return width * arch.base_width // 64 * arch.groups


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, *, groups: int = 1, bias: bool = False) -> nn.Conv2d:
    """A convolution that keeps the size at stride 1; no bias where batch normalisation follows, which has one."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=bias)


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
    pooled = arch.downsample == "pool"
    parts: list[nn.Module] = [conv(inputs, outputs, 1, 1 if pooled else stride, bias=arch.norm == "none")]
    if pooled:  # an odd last row or column is averaged over what there is of it
        parts.insert(
            0, nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity()
        )
    if not arch.preactivation:
        parts.append(make_norm(outputs, arch.norm))
    return nn.Sequential(*parts) if len(parts) > 1 else parts[0]


class SqueezeExcite(nn.Module):
    """x * sigmoid(fc2(relu(fc1(mean of x over all positions)))); fc1 has a sixteenth of the channels, 8 at least."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(8, (channels // 16 + 4) // 8 * 8)  # a multiple of 8, as in timm
        self.fc1, self.fc2 = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        weight: Tensor = self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True))))
        return x * weight.sigmoid()


class Block(nn.Module):
    """relu(F(x) + shortcut(x)); without shortcut relu(F(x)); with preactivation F(x) + shortcut(x).

    `scale` multiplies F(x) in training and 0 skips it, for stochastic depth (arXiv 1603.09382).
    """

    expansion: int
    depth: int  # convolutions of F

    def __init__(self, inputs: int, sizes: list[tuple[int, int, int]], arch: Architecture) -> None:
        """`sizes` holds (kernel, output channels, stride) of each convolution of F; those of 3x3 are in groups."""
        super().__init__()
        channels, bias = inputs, arch.norm == "none"
        for index, (kernel, outputs, stride) in enumerate(sizes, start=1):
            groups = arch.groups if kernel == 3 else 1
            self.add_module(f"conv{index}", conv(channels, outputs, kernel, stride, groups=groups, bias=bias))
            self.add_module(f"bn{index}", make_norm(channels if arch.preactivation else outputs, arch.norm))
            channels = outputs
        self.se = SqueezeExcite(channels) if arch.se else None
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
        if self.se is not None:
            response = self.se(response)
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
    """F = conv1x1, BN, ReLU, conv3x3 (in groups), BN, ReLU, conv1x1 to 4 x width, BN."""

    expansion, depth = 4, 3

    def __init__(self, inputs: int, width: int, stride: int, arch: Architecture) -> None:
        first, second = (stride, 1) if arch.stride == "1x1" else (1, stride)
        inner = inner_width(arch, width)
        super().__init__(inputs, [(1, inner, first), (3, inner, second), (1, 4 * width, 1)], arch)


def make_stem(arch: Architecture) -> nn.Module:
    """The first convolution, or the three of the deep stem, up to the last one's normalisation."""
    stride, bias, half = min(arch.stem_stride, 2), arch.stem_bias or arch.norm == "none", arch.width // 2
    if arch.stem == "single":
        return conv(arch.channels, arch.width, 7 if arch.stem_stride == 4 else 3, stride, bias=bias)
    parts: list[nn.Module] = []
    for inputs, outputs, step in ((arch.channels, half, stride), (half, half, 1), (half, arch.width, 1)):
        parts += [conv(inputs, outputs, 3, step, bias=bias), make_norm(outputs, arch.norm), nn.ReLU(inplace=True)]
    return nn.Sequential(*parts[:-2])


class ResNet(nn.Module):
    """The network of an `Architecture`: (N, channels, H, W) pictures to (N, classes) logits.

    `stages` holds (name, module) in order; each stage but the first halves the resolution.
    """

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        _check(arch)
        self.arch = arch
        self.conv1 = make_stem(arch)
        self.bn1 = nn.Identity() if arch.preactivation else make_norm(arch.width, arch.norm)
        self.relu = nn.Identity() if arch.preactivation else nn.ReLU(inplace=True)
        pool = nn.MaxPool2d(3, 2, padding=1) if arch.pool == "pad" else nn.MaxPool2d(3, 2, ceil_mode=True)
        self.maxpool = pool if arch.stem_stride == 4 else nn.Identity()
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

"""The whole family: names and their parts, published sizes, and each part against its formula."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnetkit.complexity import count, traits
from resnetkit.model import Architecture, Block, ResNet, architecture

PUBLISHED = json.loads((Path(__file__).parent / "model_facts.json").read_text())["family"]["parameters"]


def network(arch: Architecture, seed: int = 0) -> ResNet:
    """Random batch statistics too, or their place would not show."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = ResNet(arch).eval()
        for module in made.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    assert tensor is not None
                    nn.init.uniform_(tensor, 0.5, 1.5)
    return made


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name: str) -> None:
    assert count(architecture(name), 64).parameters == PUBLISHED[name]


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("resnet26", {"blocks": (2, 2, 2, 2), "block": "bottleneck"}),
        ("resnet200d", {"blocks": (3, 24, 36, 3), "stem": "deep", "downsample": "pool"}),
        ("resnet50c", {"stem": "deep", "downsample": "conv"}),
        ("resnext101_64x4d", {"groups": 64, "base_width": 4}),
        ("wide_resnet50_2", {"groups": 1, "base_width": 128}),
        ("seresnext50d_32x4d", {"se": True, "groups": 32, "base_width": 4, "stem": "deep", "downsample": "pool"}),
        ("resnetv2_50d", {"preactivation": True, "stem": "deep"}),
        ("resnet50-caffe", {"stride": "1x1", "pool": "ceil", "stem_bias": True}),
        ("resnet152-caffe", {"stride": "1x1", "pool": "ceil", "stem_bias": False}),
        ("seresnet20-cifar", {"se": True, "width": 16, "shortcut": "A", "stem_stride": 1}),
    ],
)
def test_a_name_is_its_parts(name: str, fields: dict[str, Any]) -> None:
    arch = architecture(name)
    assert {key: getattr(arch, key) for key in fields} == fields


@pytest.mark.parametrize(
    "name",
    [
        "resnext50",
        "resnet50_32x4d",
        "wide_resnet50",
        "resnet50_2",
        "resnet27",
        "resnext50_2",
        "resnet50t",
        "resnetv3_50",
    ],
)
def test_parts_that_make_no_name_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"^architecture '{name}': choose from resnet18, 26, "):
        architecture(name)


def test_wrong_choices_are_named() -> None:
    with pytest.raises(ValueError, match=r"^strid='3x3': an architecture has no such choice$"):
        architecture("resnet50", strid="3x3")
    with pytest.raises(ValueError, match="groups and base_width are a bottleneck's; take 26 layers, 50 or more"):
        architecture("resnext18_32x4d")
    with pytest.raises(ValueError, match=r"^stem='triple': choose from single, deep$"):
        architecture("resnet50", stem="triple")
    assert architecture("resnet50c", stem="single") == replace(architecture("resnet50"), name="resnet50c")


# Formulas


@torch.inference_mode()
def test_squeeze_and_excitation_is_its_formula() -> None:
    """x * sigmoid(W2 relu(W1 mean(x) + b1) + b2), written out with matrices."""
    gate = network(architecture("seresnet50")).layer2[0].se  # type: ignore[index, union-attr]
    x = torch.randn(2, 512, 5, 3, generator=torch.Generator().manual_seed(1))
    assert gate.fc1.weight.shape == (32, 512, 1, 1)
    hidden = (x.mean((2, 3)) @ gate.fc1.weight[:, :, 0, 0].T + gate.fc1.bias).clamp(min=0)
    scale = 1 / (1 + torch.exp(-(hidden @ gate.fc2.weight[:, :, 0, 0].T + gate.fc2.bias)))
    torch.testing.assert_close(gate(x), x * scale[:, :, None, None])


@torch.inference_mode()
def test_groups_are_convolutions_side_by_side() -> None:
    conv = network(architecture("resnext50_32x4d")).layer1[0].conv2  # type: ignore[index, union-attr]
    x = torch.randn(2, 128, 6, 7, generator=torch.Generator().manual_seed(1))
    side_by_side = [F.conv2d(x[:, 4 * g : 4 * g + 4], conv.weight[4 * g : 4 * g + 4], padding=1) for g in range(32)]
    torch.testing.assert_close(conv(x), torch.cat(side_by_side, 1))


@torch.inference_mode()
@pytest.mark.parametrize("name", ["resnet50d", "resnetv2_50d"])
def test_average_pooling_stands_before_the_projection(name: str) -> None:
    """Also of an odd side, whose last row is averaged over what there is."""
    block = network(architecture(name)).layer2[0]  # type: ignore[index]
    assert isinstance(block, Block)
    assert block.downsample is not None
    x = torch.randn(1, 256, 5, 5, generator=torch.Generator().manual_seed(1))
    pooled = torch.stack(
        [torch.stack([x[:, :, r : r + 2, c : c + 2].mean((2, 3)) for c in (0, 2, 4)], 2) for r in (0, 2, 4)], 2
    )
    *_, last = block.downsample.children() if name == "resnetv2_50d" else list(block.downsample.children())[:-1]
    projected = F.conv2d(pooled, last.weight)  # type: ignore[arg-type]
    if name == "resnet50d":
        projected = list(block.downsample.children())[-1](projected)
    torch.testing.assert_close(block.downsample(x), projected)


@torch.inference_mode()
def test_the_deep_stem_is_three_convolutions() -> None:
    model = network(architecture("resnet50c"))
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    y: Tensor = x
    for at, stride in ((0, 2), (3, 1)):
        conv, norm = model.conv1[at], model.conv1[at + 1]  # type: ignore[index]
        y = norm(F.conv2d(y, conv.weight, stride=stride, padding=1)).clamp(min=0)
    y = F.conv2d(y, model.conv1[6].weight, padding=1)  # type: ignore[index]
    torch.testing.assert_close(model.conv1(x), y)
    assert y.shape == (1, 64, 16, 16)


@torch.inference_mode()
@pytest.mark.parametrize(("side", "expected"), [(112, 56), (111, 55), (8, 4), (7, 3)])
def test_the_authors_pooling_has_no_border(side: int, expected: int) -> None:
    """Caffe: windows of 3 at stride 2 without padding, one more where a part is left."""
    pool = ResNet(architecture("resnet50-caffe")).maxpool
    x = torch.randn(1, 1, side, side, generator=torch.Generator().manual_seed(1))
    whole = torch.full((1, 1, side + 2, side + 2), float("-inf"))
    whole[:, :, :side, :side] = x
    plain = [
        [whole[0, 0, 2 * r : 2 * r + 3, 2 * c : 2 * c + 3].max() for c in range(expected)] for r in range(expected)
    ]
    assert torch.equal(pool(x)[0, 0], torch.tensor(plain))


@pytest.mark.parametrize("name", ["resnet50-caffe", "resnet101-caffe"])
def test_the_first_convolution_has_a_bias_in_resnet_50_alone(name: str) -> None:
    assert (ResNet(architecture(name)).conv1.bias is not None) == (name == "resnet50-caffe")


@pytest.mark.parametrize(
    "name", ["seresnext26d_32x4d", "resnetv2_26d", "wide_resnet26_2", "resnet26-caffe", "seresnet8-cifar"]
)
def test_mixes_run_and_train(name: str) -> None:
    model = network(architecture(name, classes=3))
    logits = model.train()(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)))
    logits.sum().backward()
    assert logits.shape == (2, 3)
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []


def test_gates_and_projections_do_not_count_as_depth() -> None:
    layers = {
        name: count(architecture(name), 64).layers for name in ("resnet50", "seresnet50", "resnet50d", "resnetv2_50")
    }
    assert layers == {"resnet50": 50, "seresnet50": 50, "resnet50d": 52, "resnetv2_50": 50}


def test_traits_name_every_deviation() -> None:
    arch = architecture("seresnext50d_32x4d", channels=1)
    assert set(traits(arch)) == {"channels", "groups", "base_width", "stem", "downsample", "se"}
    assert traits(architecture("resnet152")) == {}

"""The networks against the paper's and torchvision's published numbers, and against their own formulas."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from resnetkit.model import NAMES, Architecture, BasicBlock, Bottleneck, ResNet, ZeroPad, architecture

FACTS = json.loads((Path(__file__).parent / "model_facts.json").read_text())
IMAGENET = FACTS["imagenet"]["networks"]
CIFAR = FACTS["cifar"]["networks"]


def network(name: str, seed: int = 0, **choices: Any) -> ResNet:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ResNet(architecture(name, **choices))


def parameters(arch: Architecture) -> int:
    with torch.device("meta"):
        return sum(tensor.numel() for tensor in ResNet(arch).parameters())


@pytest.mark.parametrize("fact", IMAGENET, ids=lambda fact: fact["arch"])
def test_parameters_are_torchvisions(fact: dict[str, Any]) -> None:
    arch = architecture(fact["arch"])
    assert (arch.block, list(arch.blocks)) == (fact["block"], fact["blocks"])
    assert parameters(arch) == fact["parameters"]
    assert parameters(architecture(fact["arch"], stride="1x1")) == fact["parameters"]


@pytest.mark.parametrize("fact", CIFAR, ids=lambda fact: fact["arch"])
def test_parameters_are_the_papers_on_cifar(fact: dict[str, Any]) -> None:
    count = parameters(architecture(fact["arch"], classes=10))
    assert count == fact["parameters"]
    decimals = len(fact["printed_millions"].partition(".")[2])
    assert f"{count / 1e6:.{decimals}f}" == fact["printed_millions"]


@pytest.mark.parametrize("depth", ["18", "34", "20-cifar", "56-cifar"])
def test_a_plain_network_has_the_parameters_of_its_option_a_twin(depth: str) -> None:
    plain, residual = architecture(f"plain{depth}"), architecture(f"resnet{depth}", shortcut="A")
    assert parameters(plain) == parameters(residual)
    assert plain == replace(residual, name=f"plain{depth}", shortcut="none")


def test_options_b_and_c_add_their_projections() -> None:
    counts = [parameters(architecture("resnet20-cifar", classes=10, shortcut=option)) for option in ("A", "B", "C")]
    grow = (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)  # 1x1 convolution and batch norm, at two places
    same = 3 * (16 * 16 + 2 * 16) + 2 * (32 * 32 + 2 * 32) + 2 * (64 * 64 + 2 * 64)
    assert counts == [269_722, 269_722 + grow, 269_722 + grow + same]


@pytest.mark.parametrize(
    ("name", "choices", "size"),
    [
        ("resnet18", {"channels": 3}, (64, 64)),
        ("resnet18", {"channels": 1}, (33, 47)),
        ("resnet18", {"stem_stride": 1, "shortcut": "A"}, (9, 13)),
        ("resnet18", {"stem_stride": 2, "shortcut": "C"}, (31, 30)),
        ("resnet50", {"channels": 1}, (33, 47)),
        ("resnet50", {"stride": "1x1", "shortcut": "A"}, (33, 47)),
        ("plain34", {}, (32, 32)),
        ("resnet20-cifar", {"channels": 1}, (28, 28)),
        ("resnet20-cifar", {"shortcut": "C"}, (1, 1)),
        ("plain20-cifar", {}, (31, 33)),
    ],
)
def test_pictures_become_logits(name: str, choices: dict[str, Any], size: tuple[int, int]) -> None:
    model = network(name, classes=7, **choices).eval()
    pictures = torch.randn(2, model.arch.channels, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = model(pictures)
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()
    assert not torch.equal(logits[0], logits[1])


@pytest.mark.parametrize(("stem", "side"), [(4, 16), (2, 32), (1, 64)])
def test_the_stem_reduces_by_its_stride(stem: int, side: int) -> None:
    model = network("resnet18", stem_stride=stem)
    assert model.maxpool(model.conv1(torch.zeros(1, 3, 64, 64))).shape == (1, 64, side, side)


@pytest.mark.parametrize(("stride", "strides"), [("1x1", (2, 1)), ("3x3", (1, 2))])
def test_a_bottleneck_strides_where_it_is_told(stride: str, strides: tuple[int, int]) -> None:
    block = network("resnet50", stride=stride).layer2[0]
    assert (block.conv1.stride[0], block.conv2.stride[0]) == strides


@pytest.mark.parametrize(("name", "kernels"), [("resnet18", (3, 3)), ("resnet50", (1, 3, 1))])
def test_a_block_is_its_formula(name: str, kernels: tuple[int, ...]) -> None:
    """relu(F(x) + shortcut(x)), written out once more with batch norm as arithmetic on running statistics."""
    for block in network(name).eval().layer2[:2]:
        for norm in (module for module in block.modules() if isinstance(module, nn.BatchNorm2d)):
            for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5, generator=torch.Generator().manual_seed(len(tensor)))

        def normal(norm: nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
            scale = norm.weight / (norm.running_var + 1e-5).sqrt()
            return x * scale[:, None, None] + (norm.bias - norm.running_mean * scale)[:, None, None]

        x = torch.randn(2, block.conv1.in_channels, 9, 9, generator=torch.Generator().manual_seed(2)).relu()
        y = x
        for index, kernel in enumerate(kernels, start=1):
            layer = getattr(block, f"conv{index}")
            assert layer.kernel_size == (kernel, kernel)
            y = normal(getattr(block, f"bn{index}"), layer(y))
            y = y.relu() if index < len(kernels) else y
        shortcut = x if block.downsample is None else normal(block.downsample[1], block.downsample[0](x))
        with torch.no_grad():
            torch.testing.assert_close(block(x), (y + shortcut).relu(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("extra", "stride"), [(16, 2), (5, 2), (192, 1)])
def test_option_a_is_a_strided_identity_amid_zeros(extra: int, stride: int) -> None:
    x = np.random.default_rng(3).normal(size=(2, 4, 7, 6)).astype(np.float32)
    expected = np.zeros((2, 4 + extra, -(-7 // stride), -(-6 // stride)), np.float32)
    expected[:, extra // 2 : extra // 2 + 4] = x[:, :, ::stride, ::stride]
    np.testing.assert_array_equal(ZeroPad(extra, stride)(torch.from_numpy(x)).numpy(), expected)


def test_he_initialisation() -> None:
    """Each layer's sample deviation is within 5 standard errors, std / sqrt(2 n), of sqrt(2 / fan)."""
    for module in network("resnet50", seed=4).modules():
        if isinstance(module, nn.Conv2d):
            fan = module.out_channels * module.kernel_size[0] ** 2
        elif isinstance(module, nn.Linear):
            fan = module.in_features
            assert not module.bias.any()
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert not module.bias.any()
            continue
        else:
            continue
        std, n = (2 / fan) ** 0.5, module.weight.numel()
        assert abs(module.weight.std().item() - std) < 5 * std / (2 * n) ** 0.5
        assert abs(module.weight.mean().item()) < 5 * std / n**0.5


@pytest.mark.parametrize(
    ("name", "shortcut"), [("resnet18", "B"), ("resnet50", "B"), ("resnet50", "A"), ("resnet20-cifar", "A")]
)
def test_zero_gamma_starts_every_block_as_its_shortcut(name: str, shortcut: Any) -> None:
    last = "bn3" if name == "resnet50" else "bn2"
    for module in network(name, shortcut=shortcut, zero_gamma=True).modules():
        if isinstance(module, BasicBlock | Bottleneck):
            norms = {key: norm for key, norm in module.named_modules() if isinstance(norm, nn.BatchNorm2d)}
            assert {key for key, norm in norms.items() if (norm.weight == 0).all()} == {last}
            x = torch.randn(2, module.conv1.in_channels, 4, 4, generator=torch.Generator().manual_seed(5))
            with torch.no_grad():
                expected = (x if module.downsample is None else module.downsample(x)).relu()
                torch.testing.assert_close(module(x), expected, rtol=0, atol=0)


def test_state_dict_names_are_torchvisions() -> None:
    def norm(name: str) -> list[str]:
        return [f"{name}.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]

    def block(name: str) -> list[str]:
        return [f"{name}.conv1.weight", *norm(f"{name}.bn1"), f"{name}.conv2.weight", *norm(f"{name}.bn2")]

    def projected(name: str) -> list[str]:
        return [*block(name), f"{name}.downsample.0.weight", *norm(f"{name}.downsample.1")]

    names = ["conv1.weight", *norm("bn1"), *block("layer1.0"), *block("layer1.1")]
    for layer in ("layer2", "layer3", "layer4"):
        names += [*projected(f"{layer}.0"), *block(f"{layer}.1")]
    names += ["fc.weight", "fc.bias"]
    assert len(names) == 122
    assert "layer2.0.downsample.0.weight" in names
    assert list(network("resnet18").state_dict()) == names


@pytest.mark.parametrize(
    ("name", "shortcut"), [("resnet18", "C"), ("resnet50", "B"), ("resnet20-cifar", "A"), ("plain20-cifar", "none")]
)
def test_the_gradient_reaches_every_parameter(name: str, shortcut: Any) -> None:
    model = network(name, shortcut=shortcut, classes=5)
    pictures = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(6))
    nn.functional.cross_entropy(model(pictures), torch.tensor([0, 1, 2, 3])).backward()
    unreached = [key for key, tensor in model.named_parameters() if tensor.grad is None or not tensor.grad.any()]
    assert unreached == []


def test_the_seed_decides_the_initial_weights() -> None:
    first, again, other = (network("resnet20-cifar", seed=seed).state_dict() for seed in (7, 7, 8))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


CIFAR_DEPTHS = "a CIFAR network has 6n+2 layers: 8, 14, 20, 32, 44, 56, 110, 1202"


@pytest.mark.parametrize(
    ("name", "choices", "message"),
    [
        ("resnet19", {}, f"architecture 'resnet19': choose from {NAMES}"),
        ("resnet018", {}, f"architecture 'resnet018': choose from {NAMES}"),
        ("vgg16", {}, f"architecture 'vgg16': choose from {NAMES}"),
        *(
            (
                f"resnet{depth}-cifar",
                {},
                f"architecture 'resnet{depth}-cifar': {CIFAR_DEPTHS}",
            )
            for depth in (2, 21, 1208)
        ),
        ("plain18", {"shortcut": "B"}, "shortcut='B': plain18 is a network without shortcuts; take resnet18"),
        ("resnet18", {"shortcut": "D"}, "shortcut='D': choose from A, B, C, none"),
        ("resnet18", {"shortcut": ""}, "shortcut='': choose from A, B, C, none"),
        ("resnet50", {"stride": "2x2"}, "stride='2x2': choose from 1x1, 3x3"),
        ("resnet18", {"stem_stride": 3}, "stem_stride=3: choose from 4, 2, 1"),
        ("resnet18", {"stem_stride": 0}, "stem_stride=0: choose from 4, 2, 1"),
        (
            "plain18",
            {"zero_gamma": True},
            "zero_gamma=True: without shortcuts it would make every response zero; set it to False",
        ),
        ("resnet18", {"classes": 0}, "classes=0: must be at least 1"),
        ("resnet18", {"channels": -1}, "channels=-1: must be at least 1"),
    ],
)
def test_a_wrong_choice_is_named(name: str, choices: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        architecture(name, **choices)


def test_a_wrong_architecture_value_is_named() -> None:
    """The same checks stand before an `Architecture` read from a file."""
    wrong: Any = "D"
    with pytest.raises(ValueError, match=r"^shortcut='D': choose from A, B, C, none$"):
        ResNet(replace(architecture("resnet18"), shortcut=wrong))

"""Pre-activation, networks without normalisation, and the three initialisations, against formulas and peers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from resnetkit import checkpoint, tensorfile
from resnetkit.data.transforms import Preprocess
from resnetkit.model import Architecture, Block, ResNet, architecture
from resnetkit.weights import ModelFile, open_model, save_model

PREPROCESS = Preprocess(32, "shorter", 32, "bilinear", 3, "RGB", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), exif=True)


def network(arch: Architecture, seed: int = 0) -> ResNet:
    """A network whose normalisations have statistics and weights of their own, and whose biases are not zero."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ResNet(arch).eval()
    dice = torch.Generator().manual_seed(seed + 1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5, generator=dice)
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.1, generator=dice)
    return model


def parameters(arch: Architecture) -> int:
    with torch.device("meta"):
        return sum(tensor.numel() for tensor in ResNet(arch).parameters())


def pictures(number: int, channels: int, side: int) -> Tensor:
    return torch.randn(number, channels, side, side, generator=torch.Generator().manual_seed(5))


def normalised(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """Batch normalisation as arithmetic on running statistics; without normalisation what came in."""
    if f"{name}.weight" not in weights:
        return x
    weight, bias, mean, variance = (
        weights[f"{name}.{leaf}"][:, None, None] for leaf in ("weight", "bias", "running_mean", "running_var")
    )
    return (x - mean) / (variance + 1e-5).sqrt() * weight + bias


def convolved(weights: dict[str, Tensor], name: str, x: Tensor, stride: int) -> Tensor:
    kernel = weights[f"{name}.weight"]
    return F.conv2d(x, kernel, weights.get(f"{name}.bias"), stride, padding=kernel.shape[-1] // 2)


def beside(weights: dict[str, Tensor], x: Tensor, outputs: int, stride: int) -> Tensor:
    """The shortcut: identity, a projection, or option A's strided picture amid channels of zeros."""
    if "downsample.weight" in weights:
        return convolved(weights, "downsample", x, stride)
    if "downsample.0.weight" in weights:
        return normalised(weights, "downsample.1", convolved(weights, "downsample.0", x, stride))
    padded = torch.zeros(x.shape[0], outputs, -(-x.shape[2] // stride), -(-x.shape[3] // stride))
    before = (outputs - x.shape[1]) // 2
    padded[:, before : before + x.shape[1]] = x[:, :, ::stride, ::stride]
    return padded


def preactivated(weights: dict[str, Tensor], x: Tensor, strides: tuple[int, ...]) -> Tensor:
    """Figure 4 (e) of arXiv 1603.05027: F = (BN, ReLU, convolution) repeated; nothing after the addition."""
    grows = math.prod(strides) > 1
    y, shortcut = x, x
    for index, stride in enumerate(strides, start=1):
        y = normalised(weights, f"bn{index}", y).clamp(min=0)
        if index == 1 and grows:
            outputs = len(weights[f"conv{len(strides)}.weight"])
            shortcut = beside(weights, y, outputs, math.prod(strides))
        y = convolved(weights, f"conv{index}", y, stride)
    return y + shortcut


def postactivated(weights: dict[str, Tensor], x: Tensor, strides: tuple[int, ...]) -> Tensor:
    """Figure 2 of arXiv 1512.03385: F = (convolution, BN, ReLU) repeated; the last ReLU stands after the addition."""
    outputs = len(weights[f"conv{len(strides)}.weight"])
    y, shortcut = x, beside(weights, x, outputs, math.prod(strides))
    for index, stride in enumerate(strides, start=1):
        y = normalised(weights, f"bn{index}", convolved(weights, f"conv{index}", y, stride))
        y = y.clamp(min=0) if index < len(strides) else y
    return (y + shortcut).clamp(min=0)


@pytest.mark.parametrize(
    ("name", "choices", "strides"),
    [
        ("resnet18", {"shortcut": "B"}, (2, 1)),
        ("resnet18", {"shortcut": "A"}, (2, 1)),
        ("resnet18", {"shortcut": "B", "norm": "none"}, (2, 1)),
        ("resnet20-cifar", {"shortcut": "A", "norm": "none"}, (2, 1)),
        ("resnet50", {"shortcut": "B"}, (1, 2, 1)),
        ("resnet50", {"shortcut": "A"}, (1, 2, 1)),
        ("resnet50", {"shortcut": "B", "stride": "1x1"}, (2, 1, 1)),
    ],
    ids=str,
)
@pytest.mark.parametrize("reference", [preactivated, postactivated], ids=lambda function: function.__name__)
def test_a_block_is_its_formula(
    name: str, choices: dict[str, Any], strides: tuple[int, ...], reference: Callable[..., Tensor]
) -> None:
    """The first block of a stage, whose dimension grows, and the second with the identity beside it."""
    first, second = network(architecture(name, preactivation=reference is preactivated, **choices)).layer2[:2]
    for block, steps in ((first, strides), (second, (1,) * len(strides))):
        x = pictures(2, block.conv1.in_channels, 9)
        with torch.no_grad():
            expected = reference(block.state_dict(), x, steps)
            assert (expected < 0).any() == (reference is preactivated)
            torch.testing.assert_close(block(x.clone()), expected, rtol=1e-4, atol=1e-4)


def test_the_first_bottleneck_of_all_projects_the_activated_input() -> None:
    """Its dimension grows from 64 to 256 without a stride."""
    block = network(architecture("resnet50", preactivation=True)).layer1[0]
    weights, x = block.state_dict(), pictures(2, 64, 5)
    activated = normalised(weights, "bn1", x).clamp(min=0)
    with torch.no_grad():
        response = block(x) - convolved(weights, "downsample", activated, 1)
        for index in (1, 2, 3):
            x = convolved(weights, f"conv{index}", normalised(weights, f"bn{index}", x).clamp(min=0), 1)
        torch.testing.assert_close(response, x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "norm"), [("resnet20-cifar", "batch"), ("resnet20-cifar", "none"), ("resnet18", "batch")]
)
def test_a_last_normalisation_stands_before_the_pooling(name: str, norm: Any) -> None:
    model = network(architecture(name, preactivation=True, norm=norm, classes=7))
    sums = []
    model.stages[-1][1].register_forward_hook(lambda _module, _inputs, output: sums.append(output.clone()))
    x = pictures(2, 3, 33)
    with torch.no_grad():
        logits = model(x)
        maps = model.features(x)
    weights = model.state_dict()
    activated = normalised(weights, "norm.0", sums[0]).clamp(min=0)
    torch.testing.assert_close(maps[-1], activated, rtol=1e-5, atol=1e-5)
    expected = activated.mean((2, 3)) @ weights["fc.weight"].T + weights["fc.bias"]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert (sums[0] < 0).any()
    assert all((stage < 0).any() for stage in maps[:-1])  # a sum leaves the other stages as it is


def test_nothing_but_a_convolution_and_the_pooling_stands_before_the_first_preactivated_block() -> None:
    model = network(architecture("resnet18", preactivation=True))
    seen = []
    model.layer1.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].clone()))
    x = pictures(1, 3, 32)
    with torch.no_grad():
        model(x)
        expected = F.max_pool2d(convolved(model.state_dict(), "conv1", x, 2), 3, 2, padding=1)
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("depth", [20, 110])
def test_preactivated_parameters_are_the_sum_over_layers(depth: int) -> None:
    """A normalisation of what goes into each convolution but the first, and one before the pooling."""
    convolutions = (depth - 2) // 3  # per stage
    total = 9 * 3 * 16
    for inputs, width in ((16, 16), (16, 32), (32, 64)):
        total += 9 * inputs * width + 2 * inputs
        total += (convolutions - 1) * (9 * width * width + 2 * width)
    total += 2 * 64 + 64 * 10 + 10
    assert parameters(architecture(f"resnet{depth}-cifar", classes=10, preactivation=True)) == total


def test_preactivated_parameters_are_timms() -> None:
    """timm 1.0.31's resnetv2_50: the stride in the 3x3, projections without normalisation.

    Printed by sum(p.numel() for p in timm.create_model("resnetv2_50").parameters()); with the weights of that network
    in ours the logits of both were the same to 3e-7 of the largest.
    """
    assert parameters(architecture("resnet50", preactivation=True, stride="3x3")) == 25_549_352


@pytest.mark.parametrize("name", ["resnet18", "plain18", "resnet20-cifar", "resnet110-cifar"])
def test_preactivation_moves_normalisations_and_adds_none(name: str) -> None:
    """All but those of projections, which it does without; option A and plain networks have no projections."""
    choices: dict[str, Any] = {} if name.startswith("plain") else {"shortcut": "A"}
    assert parameters(architecture(name, preactivation=True, **choices)) == parameters(architecture(name, **choices))


@pytest.mark.parametrize("preactivation", [False, True])
@pytest.mark.parametrize("name", ["resnet20-cifar", "plain20-cifar", "resnet18", "plain18", "resnet50"])
def test_without_normalisation_a_picture_does_not_see_its_batch(name: str, preactivation: bool) -> None:
    """Biases take the place of batch normalisation, and in training too each picture has logits of its own."""
    model = network(architecture(name, classes=5, norm="none", preactivation=preactivation)).train()
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    assert list(model.buffers()) == []
    assert all(module.bias is not None for module in model.modules() if isinstance(module, nn.Conv2d))
    x = pictures(3, 3, 32)
    with torch.no_grad():
        together, alone = model(x), torch.cat([model(picture[None]) for picture in x])
    assert together.shape == (3, 5)
    assert together.isfinite().all()
    assert not torch.allclose(together[0], together[1])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-3 * float(alone.abs().max()))


FORMULAS: dict[str, Callable[[int, int], float]] = {
    "he": lambda _fan_in, fan_out: math.sqrt(2 / fan_out),  # arXiv 1502.01852, equation 14
    "xavier": lambda fan_in, fan_out: math.sqrt(2 / (fan_in + fan_out)),  # Glorot and Bengio 2010, equation 12
    "small": lambda _fan_in, _fan_out: 0.01,  # Krizhevsky 2012, section 5
}


@pytest.mark.parametrize("init", FORMULAS)
@pytest.mark.parametrize(("name", "norm"), [("resnet18", "none"), ("resnet50", "batch"), ("plain20-cifar", "none")])
def test_weights_are_drawn_with_the_deviation_of_the_formula(name: str, norm: Any, init: Any) -> None:
    """Deviation and mean of each layer within 5 standard errors, std / sqrt(2 n) and std / sqrt(n)."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = ResNet(architecture(name, norm=norm, init=init))
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(layers) >= 20
    for layer in layers:
        area = layer.weight[0, 0].numel()
        fan_in, fan_out = layer.weight.shape[1] * area, layer.weight.shape[0] * area
        if isinstance(layer, nn.Linear) and init == "he":
            fan_out = fan_in  # equation 10, the forward case: no later layer takes the gradient's place
        std, n = FORMULAS[init](fan_in, fan_out), layer.weight.numel()
        assert abs(layer.weight.std().item() - std) < 5 * std / (2 * n) ** 0.5
        assert abs(layer.weight.mean().item()) < 5 * std / n**0.5
        assert layer.bias is None or not layer.bias.any()


NO_LAST_NORM = "zero_gamma=True: there is no batch normalisation at the end of a block here; set it to False"


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"zero_gamma": True, "norm": "none"}, NO_LAST_NORM),
        ({"zero_gamma": True, "preactivation": True}, NO_LAST_NORM),
        ({"norm": "layer"}, "norm='layer': choose from batch, none"),
        ({"init": "zeros"}, "init='zeros': choose from he, xavier, small"),
    ],
)
def test_a_wrong_choice_is_named(choices: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        architecture("resnet18", **choices)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):  # as before an architecture from a file
        ResNet(replace(architecture("resnet18"), **choices))


@pytest.mark.parametrize(
    "choices",
    [{"preactivation": True}, {"norm": "none", "init": "small"}, {"preactivation": True, "norm": "none"}],
    ids=str,
)
def test_a_model_with_these_choices_comes_back_from_its_file(choices: dict[str, Any], tmp_path: Path) -> None:
    arch = architecture("resnet8-cifar", classes=2, **choices)
    model = network(arch)
    save_model(ModelFile(model, ("cat", "dog"), PREPROCESS), tmp_path / "model.safetensors")
    opened = open_model(tmp_path / "model.safetensors").network
    assert opened.arch == arch
    x = pictures(2, 3, 16)
    with torch.no_grad():
        assert torch.equal(opened(x), model(x))


def test_a_model_file_from_before_these_choices_opens_with_the_defaults(tmp_path: Path) -> None:
    model, path = network(architecture("resnet8-cifar", classes=2)), tmp_path / "model.safetensors"
    save_model(ModelFile(model, ("cat", "dog"), PREPROCESS), path)
    tensors, meta = tensorfile.read(path)
    assert meta is not None
    for key in ("preactivation", "norm", "init"):
        del meta["architecture"][key]
    path.write_bytes(tensorfile.dump(tensors, meta))
    opened = open_model(path).network
    assert (opened.arch.preactivation, opened.arch.norm, opened.arch.init) == (False, "batch", "he")
    x = pictures(2, 3, 16)
    with torch.no_grad():
        assert torch.equal(opened(x), model(x))


Resnet = Callable[..., tuple[int, str, str]]


def test_recipe_check_knows_these_choices(resnet: Resnet, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    model = 'base = "digits"\n[model]\npreactivation = true\nnorm = "none"\ninit = "small"\n'
    file.write_text(model)
    code, out, _ = resnet("recipe", "check", str(file))
    assert code == 0
    for line in ("preactivation = True, in digits False", "norm = none, in digits batch", "init = small, in digits he"):
        assert f"  model.{line}\n" in out
    file.write_text(f"{model}zero_gamma = true\n")
    code, _, err = resnet("recipe", "check", str(file))
    assert (code, err) == (2, f"resnet: {NO_LAST_NORM}\n")


def test_settings_of_a_training_reach_the_network(resnet: Resnet, tmp_path: Path) -> None:
    dice = np.random.Generator(np.random.Philox(0))
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(10):
            pixels = dice.integers(256, size=(12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{number}.png")
    chosen = ["model.preactivation=true", 'model.norm="none"', 'model.init="small"', "model.zero_gamma=false"]
    chosen += [
        "model.arch=resnet8-cifar",
        "data.size=12",
        "optim.batch=8",
        "schedule.steps=1",
        "run.precision=fp32",
        "run.device=cpu",
    ]
    settings = [word for setting in chosen for word in ("--set", setting)]
    run = tmp_path / "run"
    code, _, err = resnet("train", str(tmp_path / "data"), *settings, "--out", str(run))
    assert code == 0, err
    arch = architecture("resnet8-cifar", classes=2, preactivation=True, norm="none", init="small")
    opened = open_model(run).network
    assert opened.arch == arch
    assert all(isinstance(block, Block) and block.preactivation for block in opened.blocks)
    first = tensorfile.read(checkpoint.saved(run)[0])[0]  # before the first step
    drawn = torch.cat([tensor.flatten() for name, tensor in first.items() if re.search(r"conv\d\.weight", name)])
    assert abs(drawn.std().item() - 0.01) < 5 * 0.01 / (2 * len(drawn)) ** 0.5

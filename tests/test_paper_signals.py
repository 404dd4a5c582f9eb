"""Responses and gradients by layer, against cases worked out by hand and a forward pass written from the formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnetkit.model import ResNet, architecture
from resnetkit.paper.signals import layers, responses, signals

KINDS: list[dict[str, Any]] = [
    {"name": "plain8-cifar"},
    {"name": "resnet8-cifar"},
    {"name": "resnet14-cifar", "shortcut": "B"},
    {"name": "plain8-cifar", "norm": "none"},
    {"name": "resnet8-cifar", "norm": "none"},
    {"name": "resnet8-cifar", "preactivation": True},
    {"name": "resnet8-cifar", "shortcut": "B", "preactivation": True},
    {"name": "resnet8-cifar", "preactivation": True, "norm": "none"},
]


def deviations(network: ResNet, pictures: torch.Tensor) -> list[float]:
    """Figure 7's statistic with running statistics, so that each can be set by hand."""
    with torch.no_grad():
        return [response.std().item() for response in responses(network.eval(), pictures)[0]]


def made(name: str, **choices: Any) -> ResNet:
    """In double precision, with random numbers wherever a network begins with zeros and ones."""
    network = ResNet(architecture(name, classes=4, **choices)).double()
    dice = torch.Generator().manual_seed(5)
    for key, tensor in network.state_dict().items():
        if tensor.ndim > 1:
            tensor.copy_(
                torch.randn(tensor.shape, generator=dice, dtype=torch.float64) * (2 / tensor[0].numel()) ** 0.5
            )
        elif key.endswith(("weight", "running_var")):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=dice, dtype=torch.float64))
        elif tensor.ndim == 1:
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=dice, dtype=torch.float64))
    return network


def some_pictures(count: int = 6, side: int = 8) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(6), dtype=torch.float64)


class Reference:
    """The forward pass of a CIFAR network from its state dict alone, which notes responses as it goes."""

    def __init__(self, network: ResNet, *, training: bool) -> None:
        self.arch, self.training = network.arch, training
        self.tensors = {key: tensor.detach().clone() for key, tensor in network.state_dict().items()}
        self.weights: list[Tensor] = []
        self.seen: list[Tensor] = []

    def convolved(self, x: Tensor, name: str, stride: int, padding: int = 1) -> Tensor:
        weight = self.tensors[f"{name}.weight"]
        if padding:
            weight = weight.requires_grad_()
            self.weights.append(weight)
        return F.conv2d(x, weight, self.tensors.get(f"{name}.bias"), stride=stride, padding=padding)

    def normalised(self, x: Tensor, name: str) -> Tensor:
        """(x - mean) / sqrt(variance + eps), of the batch in training, scaled and shifted; nothing without norm."""
        if f"{name}.running_mean" not in self.tensors:
            return x
        weight, bias, mean, variance = (
            self.tensors[f"{name}.{key}"].view(1, -1, 1, 1) for key in ("weight", "bias", "running_mean", "running_var")
        )
        if self.training:
            mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt() * weight + bias

    def shortcut(self, x: Tensor, name: str, width: int, stride: int) -> Tensor:
        if x.shape[1] == width and stride == 1:
            return x
        if self.arch.shortcut == "A":
            more = (width - x.shape[1]) // 2
            zeros = x.new_zeros(x.shape[0], more, *x[:, :, ::stride, ::stride].shape[2:])
            return torch.cat([zeros, x[:, :, ::stride, ::stride], zeros], 1)
        if self.arch.preactivation:
            return self.convolved(x, f"{name}.downsample", stride, 0)
        return self.normalised(self.convolved(x, f"{name}.downsample.0", stride, 0), f"{name}.downsample.1")

    def block(self, x: Tensor, name: str, width: int, stride: int) -> Tensor:
        pre, entered = self.arch.preactivation, x
        for index in (1, 2):
            if pre:
                x = self.normalised(x, f"{name}.bn{index}").clamp(min=0)
                entered = x if index == 1 and (stride > 1 or entered.shape[1] != width) else entered
            x = self.convolved(x, f"{name}.conv{index}", stride if index == 1 else 1)
            x = x if pre else self.normalised(x, f"{name}.bn{index}")
            self.seen.append(x)
            x = x if pre or index == 2 else x.clamp(min=0)
        if self.arch.shortcut != "none":
            x = x + self.shortcut(entered, name, width, stride)
        return x if pre else x.clamp(min=0)

    def __call__(self, x: Tensor) -> Tensor:
        x = self.convolved(x, "conv1", 1)
        if not self.arch.preactivation:
            x = self.normalised(x, "bn1")
        self.seen.append(x)
        x = x if self.arch.preactivation else x.clamp(min=0)
        for stage, count in enumerate(self.arch.blocks):
            for index in range(count):
                stride = 2 if stage and not index else 1
                x = self.block(x, f"layer{stage + 1}.{index}", 16 << stage, stride)
        if self.arch.preactivation:
            x = self.normalised(x, "norm.0").clamp(min=0)
        return x.mean((2, 3)) @ self.tensors["fc.weight"].T + self.tensors["fc.bias"]


@pytest.mark.parametrize("choices", KINDS, ids=str)
def test_responses_are_those_of_the_formulas(choices: dict[str, Any]) -> None:
    network, pictures = made(**choices), some_pictures()
    reference = Reference(network, training=False)
    logits = reference(pictures)
    found = deviations(network, pictures)
    assert found == pytest.approx([tensor.std().item() for tensor in reference.seen], rel=1e-9)
    assert not network.training
    with torch.no_grad():
        torch.testing.assert_close(network(pictures), logits.detach())


@pytest.mark.parametrize("choices", KINDS, ids=str)
def test_signals_are_those_of_the_formulas(choices: dict[str, Any]) -> None:
    network, pictures, labels = made(**choices), some_pictures(), torch.tensor([0, 1, 2, 3, 0, 1])
    reference = Reference(network, training=True)
    chances = reference(pictures).softmax(1)
    loss = -chances[torch.arange(len(labels)), labels].log().mean()
    gradients = torch.autograd.grad(loss, reference.weights)
    found = signals(network, pictures, labels)
    assert found["variance"] == pytest.approx([tensor.var().item() for tensor in reference.seen], rel=1e-9)
    assert found["gradient"] == pytest.approx([(g * g).sum().sqrt().item() for g in gradients], rel=1e-9)


# By hand


def passing(name: str) -> ResNet:
    """Every convolution hands its first channels on as they are, and normalisation changes nothing."""
    network = ResNet(architecture(name, classes=4)).double()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.dirac_(module.weight)
        elif isinstance(module, nn.BatchNorm2d):
            assert module.running_var is not None
            module.running_var.fill_(1 - module.eps)
    return network


def deviation(heights: list[tuple[int, float]], channels: int, places: int) -> float:
    """Of a response in which so many channels have one value each everywhere and the others 0; n - 1 below."""
    n = channels * places
    total = sum(count * places * value for count, value in heights)
    squares = sum(count * places * value**2 for count, value in heights)
    return math.sqrt((squares - total**2 / n) / (n - 1))


def test_a_plain_network_that_hands_on_its_input() -> None:
    """Two white pictures of 8x8: 3 of 16 channels are 1, then 3 of 32 and 3 of 64, at 64, 16 and 4 places."""
    one = [(3, 1.0)]
    expected = [deviation(one, 16, 2 * 64)] * 3 + [deviation(one, 32, 2 * 16)] * 2 + [deviation(one, 64, 2 * 4)] * 2
    found = deviations(passing("plain8-cifar"), torch.ones(2, 3, 8, 8, dtype=torch.float64))
    assert found == pytest.approx(expected, rel=1e-9)


def test_responses_are_taken_before_the_addition() -> None:
    """The same with shortcuts: each block doubles, and option A moves the input by half of the new channels.

    Block 1 answers 1 to an input of 1 and gives 2. Block 2 answers 2 in channels 0 to 2, to which the shortcut adds 2
    in channels 8 to 10. Block 3 answers 2 in those six. After the additions 3 channels would be 2, 6 be 2, 12 be 2.
    """
    expected = [deviation([(3, 1.0)], 16, 2 * 64)] * 3
    expected += [deviation([(3, 2.0)], 32, 2 * 16)] * 2 + [deviation([(6, 2.0)], 64, 2 * 4)] * 2
    found = deviations(passing("resnet8-cifar"), torch.ones(2, 3, 8, 8, dtype=torch.float64))
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", ["plain8-cifar", "resnet8-cifar"])
def test_responses_are_taken_before_the_nonlinearity(name: str) -> None:
    """Black pictures: the first response is as large as that of white ones, the ReLU after it leaves nothing."""
    found = deviations(passing(name), -torch.ones(2, 3, 8, 8, dtype=torch.float64))
    assert found == pytest.approx([deviation([(3, 1.0)], 16, 2 * 64)] + [0.0] * 6, abs=1e-12)


@pytest.mark.parametrize("name", ["plain14-cifar", "resnet14-cifar"])
def test_the_variance_of_a_normalised_response_is_the_square_of_its_scale(name: str) -> None:
    """In a step of training batch normalisation gives each channel mean 0 and the variance that its weight says."""
    network, pictures = made(name), some_pictures(8, 16)
    scales = [0.5 + 0.25 * index for index in range(13)]
    for (_, norm), scale in zip(layers(network), scales, strict=True):
        nn.init.constant_(norm.get_parameter("weight"), scale)
        nn.init.zeros_(norm.get_parameter("bias"))
    found = signals(network, pictures, torch.zeros(8, dtype=torch.long))
    assert found["variance"] == pytest.approx([scale**2 for scale in scales], rel=1e-2)


# Which layers


@pytest.mark.parametrize(
    ("name", "choices", "convolutions"),
    [
        ("plain8-cifar", {}, 6 * 1 + 1),
        ("resnet20-cifar", {}, 6 * 3 + 1),
        ("resnet20-cifar", {"shortcut": "C"}, 6 * 3 + 1),
        ("resnet20-cifar", {"preactivation": True}, 6 * 3 + 1),
        ("plain20-cifar", {"norm": "none"}, 6 * 3 + 1),
        ("resnet56-cifar", {}, 6 * 9 + 1),
        ("resnet34", {"shortcut": "C"}, 33),
        ("resnet50", {}, 49),
    ],
)
def test_layers_are_the_convolutions_of_the_depth(name: str, choices: dict[str, Any], convolutions: int) -> None:
    with torch.device("meta"):
        network = ResNet(architecture(name, **choices))
    found = layers(network)
    assert len(found) == convolutions
    beside = [m for n, m in network.named_modules() if isinstance(m, nn.Conv2d) and "downsample" not in n]
    assert [convolution for convolution, _ in found] == beside, "in the order of the depth, without projections"
    responding = [module for _, module in found]
    if choices.get("preactivation"):
        assert responding == beside, "the normalisation that follows belongs to the next layer"
    elif choices.get("norm") == "none":
        assert all(isinstance(module, nn.Identity) for module in responding)
    else:
        assert all(isinstance(module, nn.BatchNorm2d) for module in responding)


# What a look leaves behind


@pytest.mark.parametrize("choices", KINDS[1:5], ids=str)
def test_a_second_look_sees_the_same(choices: dict[str, Any]) -> None:
    network, pictures, labels = made(**choices), some_pictures(), torch.tensor([0, 1, 2, 3, 0, 1])
    weights = [parameter.clone() for parameter in network.parameters()]
    first = signals(network, pictures, labels)
    assert min(first["gradient"]) > 0
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 1e3)  # of somebody else's step
    with torch.no_grad():
        second = signals(network, pictures, labels)
    assert second == first
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(a, b) for a, b in zip(weights, network.parameters(), strict=True))
    assert not any(module._forward_hooks for module in network.modules()), "nothing listens any more"


def test_a_look_that_fails_stops_listening() -> None:
    network = made("resnet8-cifar")
    with pytest.raises(RuntimeError):
        deviations(network, torch.zeros(1, 5, 8, 8, dtype=torch.float64))
    assert not any(module._forward_hooks for module in network.modules())


def test_what_is_not_finite_is_given_as_it_is() -> None:
    network = made("plain8-cifar", norm="none").float()
    found = signals(network, 1e38 * some_pictures().float(), torch.tensor([0, 1, 2, 3, 0, 1]))
    assert not all(map(math.isfinite, found["variance"]))
    assert not all(map(math.isfinite, found["gradient"]))

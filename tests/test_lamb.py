"""LAMB against timm's, against its formula, and through a checkpoint."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from resnetkit.lamb import Lamb
from resnetkit.model import ResNet, architecture
from resnetkit.optim import buffers, make_optimizer, restore_buffers
from resnetkit.recipe import Optim
from torchvision_shim import peer

RECIPE = Optim(optimizer="lamb", lr=5e-3, weight_decay=0.02, momentum=0.9)


def network(seed: int = 0) -> ResNet:
    torch.manual_seed(seed)
    return ResNet(architecture("resnet8-cifar", classes=5, zero_gamma=True)).to(memory_format=torch.channels_last)


def gradients(of: nn.Module, seed: int) -> None:
    """Other gradients each time, of very different lengths, some of them zero."""
    dice = torch.Generator().manual_seed(seed)
    for number, parameter in enumerate(of.parameters()):
        size = 0.0 if number == 4 else 10.0 ** (number % 5 - 3)
        found = size * torch.randn(parameter.shape, generator=dice)
        parameter.grad = torch.empty_like(parameter).copy_(found)  # in the parameter's layout, as autograd has it


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("decay_all", [False, True])
def test_many_steps_are_timms(decay_all: bool, clip: float) -> None:
    """Six steps at changing rates, both groups, zero gradients and zero weights among them."""
    timm = peer("timm.optim")
    mine, theirs = network(), network()
    own = make_optimizer(mine, replace(RECIPE, decay_all=decay_all))
    plain = [p for p in theirs.parameters() if p.ndim <= 1 and not decay_all]
    decayed = [p for p in theirs.parameters() if p.ndim > 1 or decay_all]
    groups = [{"params": decayed, "weight_decay": 0.02}, {"params": plain, "weight_decay": 0.0}]
    other = timm.Lamb([group for group in groups if group["params"]], lr=5e-3, max_grad_norm=clip or None)
    for step in range(6):
        gradients(mine, step)
        gradients(theirs, step)
        for optimizer in (own, other):
            for group in optimizer.param_groups:
                group["lr"] = 5e-3 / (1 + step)
        if clip:
            torch.nn.utils.clip_grad_norm_(mine.parameters(), clip)
        own.step()
        other.step()
    for (name, a), b in zip(mine.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-7, msg=name)


def test_it_is_its_formula() -> None:
    """In float64, a tensor at a time; biases take Adam's step."""
    layer = nn.Linear(3, 2)
    own = make_optimizer(layer, RECIPE)  # type: ignore[arg-type]
    values = {name: p.detach().double().numpy().copy() for name, p in layer.named_parameters()}
    first = {name: np.zeros_like(value) for name, value in values.items()}
    second = {name: np.zeros_like(value) for name, value in values.items()}
    dice = np.random.Generator(np.random.Philox(0))
    for step, rate in enumerate((0.1, 0.05, 0.01), start=1):
        for group in own.param_groups:
            group["lr"] = rate
        for name, parameter in layer.named_parameters():
            g = dice.normal(size=parameter.shape)
            parameter.grad = torch.tensor(g).float()
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.999 * second[name] + 0.001 * g * g
            update = first[name] / (1 - 0.9**step) / (np.sqrt(second[name] / (1 - 0.999**step)) + 1e-6)
            if name == "weight":
                update += 0.02 * values[name]
                update *= np.linalg.norm(values[name]) / np.linalg.norm(update)
            values[name] = values[name] - rate * update
        own.step()
    for name, parameter in layer.named_parameters():
        np.testing.assert_allclose(parameter.detach(), values[name], rtol=1e-5)


def test_a_golden_step() -> None:
    """w = 3, 4 of length 5, g = 1, -2: u = (1, -1) + 0.02 w, so w - 0.1 u 5 / |u|; by hand."""
    weight = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    weight.grad = torch.tensor([[1.0, -2.0]])
    Lamb([{"params": [weight], "weight_decay": 0.02}], lr=0.1).step()
    u = np.array([1.06, -0.92])
    expected = np.array([3.0, 4.0]) - 0.1 * u * 5 / np.hypot(*u)
    np.testing.assert_allclose(weight.detach()[0], expected, rtol=1e-5)
    np.testing.assert_allclose(expected, [2.6223906, 4.3277364], rtol=1e-7)


def test_a_weight_or_a_change_of_length_zero_takes_the_plain_step() -> None:
    weight = nn.Parameter(torch.zeros(1, 2))
    weight.grad = torch.tensor([[1.0, -2.0]])
    Lamb([{"params": [weight], "weight_decay": 0.02}], lr=0.1).step()
    np.testing.assert_allclose(weight.detach()[0], [-0.1, 0.1], rtol=1e-5)
    still = nn.Parameter(torch.zeros(1, 2))
    still.grad = torch.zeros(1, 2)
    Lamb([{"params": [still], "weight_decay": 0.02}], lr=0.1).step()
    assert still.detach().tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("optimizer", ["sgd", "lamb"])
def test_what_it_keeps_goes_through_a_checkpoint_to_the_same_bits(optimizer: str) -> None:
    """Saved after three steps and put into another optimizer, the next three are equal, memory layout included."""
    recipe = replace(RECIPE, optimizer=optimizer)  # type: ignore[arg-type]
    mine = network()
    own = make_optimizer(mine, recipe)
    assert buffers(own, mine) == {}
    for step in range(3):
        gradients(mine, step)
        own.step()
    saved: dict[str, Tensor] = {name: tensor.clone().contiguous() for name, tensor in buffers(own, mine).items()}
    kinds = {"sgd": {"momentum"}, "lamb": {"momentum", "square"}}[optimizer]
    assert set(saved) == {f"{kind}.{name}" for kind in kinds for name, _ in mine.named_parameters()}
    other = network(1)
    other.load_state_dict(mine.state_dict())
    again = make_optimizer(other, recipe)
    restore_buffers(again, other, saved, 3)
    for name, tensor in buffers(again, other).items():
        assert tensor.stride() == buffers(own, mine)[name].stride()
    for step in range(3, 6):
        for each, its in ((mine, own), (other, again)):
            gradients(each, step)
            its.step()
    for a, b in zip(mine.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)

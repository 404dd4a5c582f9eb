"""Schedules against torch's own, SGD against its formula, averages, and what freezing leaves alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, MultiStepLR, SequentialLR

from resnetkit.model import ResNet, architecture
from resnetkit.optim import Averaged, freeze_backbone, learning_rate, make_sgd, parameter_groups, train_mode
from resnetkit.recipe import Optim, Schedule

STEPS = 60


def of_torch(scheduler: type[LRScheduler], **choices: object) -> list[float]:
    """The learning rate of every step, by torch's scheduler."""
    sgd = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    plan = scheduler(sgd, **choices)
    rates = []
    for _ in range(STEPS):
        rates.append(sgd.param_groups[0]["lr"])
        sgd.step()
        plan.step()
    return rates


def test_cosine_is_torchs() -> None:
    ours = [learning_rate(Schedule(), 0.1, step, STEPS, 0) for step in range(STEPS)]
    assert ours == pytest.approx(of_torch(CosineAnnealingLR, T_max=STEPS), abs=1e-12)


def test_steps_are_torchs() -> None:
    schedule = Schedule(decay="step", milestones=(0.5, 0.75), gamma=0.1)
    ours = [learning_rate(schedule, 0.1, step, STEPS, 0) for step in range(STEPS)]
    assert ours == pytest.approx(of_torch(MultiStepLR, milestones=[30, 45], gamma=0.1))


@pytest.mark.parametrize("start", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("warmup", [1, 2, 7, 59])
def test_a_warm_up_before_the_cosine_is_torchs(warmup: int, start: float) -> None:
    """torch's LinearLR begins at its start_factor, ours one step further, so that no step is lost on a rate of zero."""
    sgd = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    first = LinearLR(sgd, start_factor=start + (1 - start) / warmup, total_iters=max(1, warmup - 1))
    plan = SequentialLR(sgd, [first, CosineAnnealingLR(sgd, T_max=STEPS - warmup)], milestones=[warmup])
    for step in range(STEPS):
        rate = learning_rate(Schedule(warmup_start=start), 0.1, step, STEPS, warmup)
        assert rate == pytest.approx(sgd.param_groups[0]["lr"], abs=1e-12), step
        sgd.step()
        plan.step()


def test_the_papers_schedule() -> None:
    """Sec. 4.2: 0.1, divided by 10 at 32k and 48k of 64k; 110 layers warm up at 0.01 for about 400 steps."""
    schedule = Schedule(decay="step", warmup="constant", warmup_start=0.1)
    at = {step: learning_rate(schedule, 0.1, step, 64_000, 400) for step in (0, 399, 400, 31_999, 32_000, 48_000)}
    expected = {0: 0.01, 399: 0.01, 400: 0.1, 31_999: 0.1, 32_000: 0.01, 48_000: 0.001}
    assert at == pytest.approx(expected)


@given(st.integers(1, 500), st.data())
def test_warm_up_rises_to_the_highest_rate_and_nothing_is_above_it(total: int, data: st.DataObject) -> None:
    warmup = data.draw(st.integers(0, total - 1))
    rates = [learning_rate(Schedule(), 0.1, step, total, warmup) for step in range(total)]
    assert rates[: warmup + 1] == sorted(rates[: warmup + 1])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert max(rates) == rates[warmup] == pytest.approx(0.1)
    assert min(rates) > 0


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_its_formula(nesterov: bool) -> None:
    """g += decay w; v = 0.9 v + g; w -= lr (g + 0.9 v if nesterov else v), in float64."""
    layer = nn.Linear(3, 2)
    recipe = Optim(lr=0.1, momentum=0.9, nesterov=nesterov, weight_decay=0.01)
    sgd = make_sgd(layer, recipe)
    w = layer.weight.detach().double().numpy().copy()
    b = layer.bias.detach().double().numpy().copy()
    vw, vb = np.zeros_like(w), np.zeros_like(b)
    dice = np.random.Generator(np.random.Philox(0))
    for rate in (0.1, 0.05, 0.01):
        gw, gb = dice.normal(size=(2, 3)), dice.normal(size=2)
        for group in sgd.param_groups:
            group["lr"] = rate
        layer.weight.grad, layer.bias.grad = torch.tensor(gw).float(), torch.tensor(gb).float()
        sgd.step()
        gw = gw + 0.01 * w  # biases are not decayed
        vw, vb = 0.9 * vw + gw, 0.9 * vb + gb
        w = w - rate * (gw + 0.9 * vw if nesterov else vw)
        b = b - rate * (gb + 0.9 * vb if nesterov else vb)
    np.testing.assert_allclose(layer.weight.detach(), w, rtol=1e-5)
    np.testing.assert_allclose(layer.bias.detach(), b, rtol=1e-5)


@pytest.mark.parametrize("decay_all", [False, True])
def test_every_parameter_is_in_one_group(decay_all: bool) -> None:
    """resnet20-cifar: 19 convolutions and fc.weight are decayed; 19 norms of two vectors and fc.bias are not."""
    network = ResNet(architecture("resnet20-cifar"))
    groups, line = parameter_groups(network, Optim(decay_all=decay_all, weight_decay=1e-4))
    members = [id(p) for group in groups for p in group["params"]]  # type: ignore[attr-defined]
    assert sorted(members) == sorted(id(p) for p in network.parameters())
    sizes = {group["weight_decay"]: len(group["params"]) for group in groups}  # type: ignore[arg-type]
    assert sizes == ({1e-4: 59} if decay_all else {1e-4: 20, 0.0: 39})
    # Two vectors for each of 7 norms of 16 channels, 6 of 32 and 6 of 64, and the 1000 biases of the dense layer
    values = sum(p.numel() for p in network.parameters())
    plain = 0 if decay_all else 2 * (7 * 16 + 6 * 32 + 6 * 64) + 1000
    none = f"none: {len(members) - sizes[1e-4]} tensors, {plain:,} values"
    assert line == f"weight decay: {sizes[1e-4]} tensors, {values - plain:,} values; {none}"


def test_the_average_is_its_formula() -> None:
    """a += (1 - d) (w - a) with d = min(decay, (1 + step) / (10 + step)), batch statistics included."""
    network = ResNet(architecture("resnet8-cifar"))
    average = Averaged(network, 0.5)
    name = "bn1.running_var"
    mine = network.state_dict()[name].double().numpy().copy()
    for step in range(1, 30):
        with torch.no_grad():
            network.state_dict()[name].add_(0.1 * step)
            network.bn1.num_batches_tracked += 1
        average.update(network, step)
        decay = min(0.5, (1 + step) / (10 + step))
        mine += (1 - decay) * (network.state_dict()[name].double().numpy() - mine)
    np.testing.assert_allclose(average.network.state_dict()[name], mine, rtol=1e-5)
    assert int(average.network.bn1.num_batches_tracked) == 29


def test_a_frozen_backbone_stays_as_it_is() -> None:
    torch.manual_seed(0)
    network = ResNet(architecture("resnet8-cifar"))
    freeze_backbone(network)
    recipe = Optim(lr=0.1, freeze="backbone")
    sgd = make_sgd(network, recipe)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    train_mode(network, recipe)
    for _ in range(2):
        sgd.zero_grad()
        network(torch.randn(4, 3, 32, 32)).square().sum().backward()
        sgd.step()
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"fc.weight", "fc.bias"}

"""Schedules against torch's own, SGD against its formula, averages, what freezing leaves alone, and rates by layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, MultiStepLR, SequentialLR

import resnetkit
from resnetkit.data.transforms import Preprocess
from resnetkit.errors import UserError
from resnetkit.events import Found, Progress
from resnetkit.model import ResNet, architecture
from resnetkit.optim import (
    Averaged,
    freeze_parts,
    layer_factors,
    learning_rate,
    make_optimizer,
    parameter_groups,
    parts,
    train_mode,
)
from resnetkit.recipe import Optim, Recipe, Schedule
from resnetkit.recipe_file import with_settings
from resnetkit.resolve import check_parts
from resnetkit.shipped import shipped
from resnetkit.training import resuming, training
from resnetkit.weights import ModelFile, open_model, save_model

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
    sgd = make_optimizer(layer, recipe)
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


# Parts of a network

ARCHES = ("resnet8-cifar", "resnet18", "resnet18d", "seresnet18", "resnetv2_18")


def owner(name: str, last: str) -> str:
    """The part that a tensor of this name belongs to, by the name alone: a slow reference for choosing by module."""
    first = name.split(".")[0]
    return {"conv1": "stem", "bn1": "stem", "norm": last}.get(first, first)


def last_stage(network: ResNet) -> str:
    return f"layer{len(network.arch.blocks)}"


@pytest.mark.parametrize("arch", ARCHES)
def test_parts_hold_every_tensor_once(arch: str) -> None:
    network = ResNet(architecture(arch, classes=3))
    named = {id(tensor): name for name, tensor in [*network.named_parameters(), *network.named_buffers()]}
    found = {
        named.pop(id(tensor)): part
        for part, modules in parts(network).items()
        for module in modules
        for tensor in [*module.parameters(), *module.buffers()]
    }
    assert named == {}
    assert found == {name: owner(name, last_stage(network)) for name in found}


FROZEN = {
    "none": (),
    "stem": ("stem",),
    "layer1": ("stem", "layer1"),
    "layer2": ("stem", "layer1", "layer2"),
    "layer3": ("stem", "layer1", "layer2", "layer3"),
    "backbone": ("stem", "layer1", "layer2", "layer3", "layer4"),
}


@pytest.mark.parametrize("freeze", FROZEN)
@pytest.mark.parametrize("arch", ["resnet8-cifar", "resnet18d", "resnetv2_18"])
def test_frozen_parts_stay_as_they_are(arch: str, freeze: str) -> None:
    """Weights and batch statistics; and all else learns, after a change of mode such as an evaluation brings too."""
    torch.manual_seed(0)
    network = ResNet(replace(architecture(arch, classes=3), width=8))
    recipe = Optim(lr=0.1, freeze=freeze)  # type: ignore[arg-type]
    freeze_parts(network, freeze)
    sgd = make_optimizer(network, recipe)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for _ in range(2):
        network.eval()
        train_mode(network, recipe)
        sgd.zero_grad()
        network(torch.randn(4, 3, 32, 32)).square().sum().backward()
        sgd.step()
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if owner(name, last_stage(network)) not in FROZEN[freeze]}


@pytest.mark.parametrize("arch", ARCHES)
def test_the_factor_of_a_part_is_the_decay_once_a_step_down(arch: str) -> None:
    network = ResNet(architecture(arch, classes=3))
    expected = {"fc": 1.0, "layer4": 0.5, "layer3": 0.25, "layer2": 0.125, "layer1": 0.0625, "stem": 0.03125}
    if arch.endswith("-cifar"):
        expected = {"fc": 1.0, "layer3": 0.5, "layer2": 0.25, "layer1": 0.125, "stem": 0.0625}
    assert layer_factors(network, 0.5) == expected
    groups, _ = parameter_groups(network, Optim(layer_decay=0.5, weight_decay=0.01))
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found = [(names[id(p)], g["factor"], g["weight_decay"]) for g in groups for p in g["params"]]  # type: ignore[attr-defined]
    assert sorted(found) == sorted(
        (name, expected[owner(name, last_stage(network))], 0.01 if parameter.ndim > 1 else 0.0)
        for name, parameter in network.named_parameters()
    )


def test_what_is_said_of_the_parts() -> None:
    network = ResNet(architecture("resnet8-cifar", classes=3))
    freeze_parts(network, "layer1")
    _, line = parameter_groups(network, Optim(layer_decay=0.5, freeze="layer1"))
    sizes = {name: sum(p.numel() for m in modules for p in m.parameters()) for name, modules in parts(network).items()}
    norms = 2 * (2 * 32 + 2 * 64) + 3  # two layers in each of the last two stages, and the dense layer's biases
    weights = sizes["layer2"] + sizes["layer3"] + sizes["fc"] - norms
    assert line == (
        f"weight decay: 5 tensors, {weights:,} values; none: 9 tensors, {norms} values; "
        f"learning rate times 1 in fc (2 tensors, {sizes['fc']} values), 0.5 in layer3 (6 tensors, "
        f"{sizes['layer3']:,} values), 0.25 in layer2 (6 tensors, {sizes['layer2']:,} values); "
        f"frozen: stem, layer1 (9 tensors, {sizes['stem'] + sizes['layer1']:,} values)"
    )


def test_a_stage_that_the_network_lacks() -> None:
    short = replace(architecture("resnet8-cifar"), name="short", blocks=(1, 1))
    with pytest.raises(UserError) as raised:
        check_parts(Optim(freeze="layer3"), short)
    assert str(raised.value) == (
        'optim.freeze="layer3": short has no such stage; choose from stem, layer1, layer2, backbone'
    )
    check_parts(Optim(freeze="layer2"), short)
    with pytest.raises(UserError, match="a frozen backbone leaves out no block"):
        check_parts(Optim(freeze="layer2", stochastic_depth=0.5), short)
    check_parts(Optim(freeze="layer1", stochastic_depth=0.5), short)


# Whole trainings

TWELVE = Preprocess(12, "shorter", 12, "bilinear", 3, "BGR", (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), True, "down")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise around four colours, ten pictures each."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    dice = np.random.default_rng(0)
    for name, colour in {
        "ant": (220, 40, 30),
        "bee": (40, 200, 60),
        "cat": (50, 60, 210),
        "dog": (200, 190, 40),
    }.items():
        (folder / name).mkdir(parents=True)
        for number in range(10):
            pixels = np.array(colour) + dice.normal(0, 20, (20, 26, 3))
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture
def given_model(tmp_path: Path) -> Path:
    """A network for two other classes, with batch statistics of its own."""
    torch.manual_seed(0)
    network = ResNet(architecture("resnet8-cifar", classes=2)).train()
    network(torch.randn(16, 3, 12, 12))
    path = tmp_path / "given.safetensors"
    save_model(ModelFile(network.eval(), ("old", "new"), TWELVE), path)
    return path


def settings(*more: str) -> Recipe:
    own = ["schedule.steps=1", "schedule.warmup_steps=0", "optim.batch=8", "run.precision=fp32", "run.device=cpu"]
    return with_settings(shipped("finetune"), [*own, *more])


def test_a_step_is_as_long_as_the_factor_of_its_part(photos: Path, given_model: Path, tmp_path: Path) -> None:
    """The first step goes along the gradient: with a decay of 1/2 each part goes its power of 1/2 of the way."""
    start = open_model(given_model).network.state_dict()
    moved: dict[float, dict[str, torch.Tensor]] = {}
    for decay in (1.0, 0.5):
        recipe = settings(f"optim.layer_decay={decay}", "optim.lr=0.1")
        resnetkit.train(photos, recipe=recipe, weights=given_model, out=tmp_path / str(decay))
        after = open_model(tmp_path / str(decay)).network.state_dict()
        kernels = [name for name, tensor in after.items() if tensor.ndim == 4]
        moved[decay] = {name: after[name] - start[name] for name in kernels}
    factors = {"layer3": 0.5, "layer2": 0.25, "layer1": 0.125, "stem": 0.0625}
    assert {owner(name, "") for name in moved[1.0]} == set(factors)
    for name, whole in moved[1.0].items():
        assert whole.abs().max() > 1e-4, "or the case would show nothing"
        torch.testing.assert_close(moved[0.5][name], factors[owner(name, "")] * whole, rtol=1e-2, atol=2e-7, msg=name)


def test_rates_by_layer_and_frozen_parts_are_resumed_to_the_bit(
    photos: Path, given_model: Path, tmp_path: Path
) -> None:
    recipe = settings(
        "optim.layer_decay=0.6", "optim.freeze=layer1", "optim.ema=0.9", "schedule.steps=9", "run.checkpoint_steps=2"
    )
    resnetkit.train(photos, recipe=recipe, weights=given_model, out=tmp_path / "whole")
    stopped = training(photos, recipe=recipe, weights=given_model, out=tmp_path / "parts")
    said = next(event for event in stopped if isinstance(event, Found))
    assert any("frozen: stem, layer1 (" in line and "0.36 in layer2 (" in line for line in said.lines)
    next(event for event in stopped if isinstance(event, Progress) and event.step >= 5)
    stopped.close()
    for _ in resuming(tmp_path / "parts"):
        pass
    whole, parts_ = (tmp_path / name / "model.safetensors" for name in ("whole", "parts"))
    assert whole.read_bytes() == parts_.read_bytes()
    start = open_model(given_model).network.state_dict()
    for name, tensor in open_model(whole).network.state_dict().items():
        if name.startswith(("conv1", "bn1", "layer1")):
            assert torch.equal(tensor, start[name]), name


def test_fine_tuning_at_another_size_and_number_of_classes(
    photos: Path, given_model: Path, tmp_path: Path, resnet: Callable[..., tuple[int, str, str]]
) -> None:
    """By the command: the size is the one asked for, all else of the input is the weights' own, and it learns."""
    run = tmp_path / "run"
    asked = ["data.size=20", "optim.layer_decay=0.8", "schedule.epochs=12", "optim.batch=8", "optim.lr=0.05"]
    asked += ["run.precision=fp32"]
    command = ["train", str(photos), "--from", str(given_model), "--out", str(run)]
    code, _, err = resnet(*command, *(part for setting in asked for part in ("--set", setting)))
    assert code == 0, err
    made = open_model(run)
    assert made.preprocess == replace(TWELVE, size=20, resize_to=20)
    assert made.classes == ("ant", "bee", "cat", "dog")
    assert made.network.fc.weight.shape == (4, 64)
    assert resnetkit.evaluate(run).top1 > 0.8
    code, _, err = resnet(*command, "--set", "optim.freeze=layer9")
    assert code == 2
    assert "optim.freeze" in err
    code, _, err = resnet(*command, "--set", "optim.layer_decay=1.5")
    assert code == 2
    assert "optim.layer_decay" in err

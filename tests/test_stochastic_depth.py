"""Stochastic depth (arXiv 1603.09382): which blocks a batch skips, what a skipped block does, and resuming with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import resnetkit
from resnetkit import checkpoint
from resnetkit.data.loader import mixing
from resnetkit.errors import UserError
from resnetkit.events import Event, Progress
from resnetkit.mixing import thin
from resnetkit.model import Block, ResNet, architecture
from resnetkit.recipe import Recipe
from resnetkit.recipe_file import with_settings
from resnetkit.shipped import shipped
from resnetkit.training import resuming, training
from resnetkit.weights import open_model

DRAWS = 4000
PREACTIVATED = pytest.mark.parametrize("preactivation", [False, True], ids=["postactivated", "preactivated"])


def network(name: str = "resnet20-cifar", seed: int = 0, **choices: Any) -> ResNet:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ResNet(architecture(name, classes=4, **choices))


def dice(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def pictures(number: int, channels: int, side: int) -> Tensor:
    return torch.randn(number, channels, side, side, generator=torch.Generator().manual_seed(1))


def scales(model: ResNet, rate: float, draw: np.random.Generator) -> tuple[float, ...]:
    thin(model, rate, draw)
    return tuple(block.scale for block in model.blocks)


@pytest.mark.parametrize("rate", [0.5, 0.2, 0.95])
def test_the_chance_to_be_skipped_rises_linearly_to_the_last_block(rate: float) -> None:
    """Of 9 blocks, block l with probability rate * l / 9, each on its own; within 5 standard errors."""
    model, draw = network(), dice()
    drawn = np.array([scales(model, rate, draw) for _ in range(DRAWS)])
    chance = rate * np.arange(1, 10) / 9
    skipped = drawn == 0
    assert (abs(skipped.mean(0) - chance) < 5 * np.sqrt(chance * (1 - chance) / DRAWS)).all()
    together = np.corrcoef(skipped.T) - np.eye(9)
    assert abs(together).max() < 5 / np.sqrt(DRAWS)


def test_the_same_step_of_the_same_seed_skips_the_same_blocks() -> None:
    model = network()
    places = [(seed, epoch, step) for seed in (0, 1) for epoch in (0, 1) for step in range(6)]
    once, again = ([scales(model, 0.7, mixing(*place)) for place in places] for _ in range(2))
    assert once == again
    assert len(set(once)) > len(places) // 2  # and others otherwise


def normalised(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Batch normalisation by the statistics of this batch."""
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, unbiased=False)
    return (x - mean) / (variance + 1e-5).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]


def padded(x: Tensor) -> Tensor:
    """Option A with stride 2: half of the new channels before, half after."""
    zeros = torch.zeros_like(x[:, : x.shape[1] // 2, ::2, ::2])
    return torch.cat([zeros, x[:, :, ::2, ::2], zeros], 1)


def alone(block: Block, x: Tensor, shortcut: str, preactivation: bool) -> Tensor:
    """What a block whose F is left out gives in training, by the formulas of both papers."""
    if preactivation and shortcut == "identity":
        return x
    if preactivation:
        x = normalised(block.bn1, x).relu()
    if shortcut == "A":
        x = padded(x)
    elif shortcut == "B":
        convolution = block.downsample if preactivation else block.downsample[0]
        x = F.conv2d(x, convolution.weight, stride=2)
        x = x if preactivation else normalised(block.downsample[1], x)
    return x if preactivation else x.relu()


@PREACTIVATED
@pytest.mark.parametrize("shortcut", ["identity", "A", "B"])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_skipped_block_is_its_shortcut(name: str, shortcut: Any, preactivation: bool) -> None:
    """In training its convolutions get no gradient and its normalisations see no batch."""
    option = "B" if shortcut == "identity" else shortcut
    block = network(name, shortcut=option, preactivation=preactivation).train().layer3[int(shortcut == "identity")]
    before = {key: tensor.clone() for key, tensor in block.state_dict().items()}
    x = pictures(3, block.conv1.in_channels, 6).requires_grad_()
    expected = alone(block, x, shortcut, preactivation)
    block.scale = 0.0
    out = block(x)
    rounding = 1e-4 if shortcut == "B" or (shortcut == "A" and preactivation) else 0  # where sums are taken twice
    torch.testing.assert_close(out, expected, rtol=rounding, atol=rounding)
    out.square().sum().backward()
    assert x.grad is not None
    assert x.grad.any()
    used = ["downsample"] if shortcut == "B" else []
    used += ["bn1"] if preactivation and shortcut != "identity" else []  # it activates the shortcut's input as well
    for key, parameter in block.named_parameters():
        assert (parameter.grad is not None) == key.startswith(tuple(used)), key
    for key, tensor in block.state_dict().items():
        moves = key.startswith(tuple(used)) and key.rpartition(".")[2] in ("running_mean", "running_var")
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(tensor, before[key]) != moves, key


@PREACTIVATED
def test_only_the_blocks_that_worked_see_the_batch(preactivation: bool) -> None:
    """Through `thin`: the number of batches that each block's last normalisation has counted."""
    model, draw = network(preactivation=preactivation).train(), dice(3)
    worked = np.zeros(9, int)
    for _ in range(12):
        worked += np.array(scales(model, 0.8, draw)) > 0
        with torch.no_grad():
            model(pictures(2, 3, 8))
    assert [int(block.bn2.num_batches_tracked) for block in model.blocks] == worked.tolist()
    assert worked.min() < 12


@PREACTIVATED
def test_in_evaluation_all_blocks_work(preactivation: bool) -> None:
    model = network(preactivation=preactivation).eval()
    x = pictures(2, 3, 8)
    with torch.no_grad():
        expected = model(x)
        for seed in range(5):
            assert 0 in scales(model, 0.9, dice(seed))
            assert torch.equal(model(x), expected)
        thin(model, 0.9, dice(0))
        assert not torch.allclose(model.train()(x), expected)


@PREACTIVATED
@pytest.mark.parametrize("rate", [0.5, 0.9])
def test_training_responds_on_average_as_evaluation(rate: float, preactivation: bool) -> None:
    """Where nothing is negative no ReLU bends, so the mean over draws is the answer with all blocks at work.

    Three blocks are skipped in eight ways; the mean of the logits over the draws within 5 standard errors.
    """
    model, draw = network("resnet8-cifar", norm="none", preactivation=preactivation), dice(7)
    for parameter in model.parameters():
        parameter.data.abs_()
    x = pictures(1, 3, 8).abs()
    ways = Counter(scales(model, rate, draw) for _ in range(DRAWS))
    assert len(ways) == 8
    model.train()
    with torch.no_grad():
        answers = []
        for way in ways:
            for block, scale in zip(model.blocks, way, strict=True):
                block.scale = scale
            answers.append(model(x)[0].double())
        expected = model.eval()(x)[0].double()
    values, weights = torch.stack(answers), torch.tensor(list(ways.values())).double()[:, None] / DRAWS
    mean = (weights * values).sum(0)
    deviation = (weights * (values - mean).square()).sum(0).sqrt()
    assert (deviation > 0.1 * expected).all()  # single draws are far from it
    assert ((mean - expected).abs() < 5 * deviation / DRAWS**0.5).all()


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, draw = tmp_path_factory.mktemp("data") / "noise", dice()
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for number in range(20):
            pixels = draw.integers(256, size=(12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def tiny(*more: str) -> Recipe:
    """Of 32 training pictures 4 steps an epoch, and 12 in all."""
    settings = ["model.arch=resnet8-cifar", "data.size=12", "optim.batch=8", "optim.lr=0.05", "schedule.epochs=3"]
    settings += ["run.checkpoint_steps=3", "run.precision=fp32", "optim.stochastic_depth=0.7"]
    return with_settings(shipped("small"), [*settings, *more])


def run_until(events: Iterator[Event], step: int) -> None:
    """Follow a training until after a step, then let it die without a word, as a power cut would."""
    for event in events:
        if isinstance(event, Progress) and event.step >= step:
            break
    events.close()  # type: ignore[attr-defined]


def written(run: Path) -> dict[str, bytes]:
    """What shall not depend on how often the run was stopped."""
    names = ["model.safetensors", "result.json", "recipe.json", "steps.csv", "checkpoints/best.safetensors"]
    names += [f"checkpoints/{path.name}" for path in checkpoint.saved(run)]
    return {name: (run / name).read_bytes() for name in names}


@pytest.mark.parametrize(
    "more",
    [[], ["model.zero_gamma=false", "model.preactivation=true", "augment.mixup=0.4", "optim.accumulate=2"]],
    ids=["plain", "with mixup in two parts"],
)
def test_a_stopped_training_ends_with_the_same_bytes(more: list[str], noise: Path, tmp_path: Path) -> None:
    recipe = tiny(*more)
    resnetkit.train(noise, recipe=recipe, out=tmp_path / "undisturbed")
    run = tmp_path / "run"
    run_until(training(noise, recipe=recipe, out=run), 2)
    for step in (5, 8):
        run_until(resuming(run), step)
    resnetkit.resume(run)
    assert written(run) == written(tmp_path / "undisturbed")


def test_the_rate_changes_what_is_learnt_and_how_it_is_not_evaluated(noise: Path, tmp_path: Path) -> None:
    rates = ("0", "0.4", "0.7")
    results = [
        resnetkit.train(noise, recipe=tiny(f"optim.stochastic_depth={rate}"), out=tmp_path / rate).result
        for rate in rates
    ]
    learnt = [open_model(tmp_path / rate).network.state_dict()["fc.weight"] for rate in rates]
    assert not any(torch.equal(learnt[a], learnt[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    assert [resnetkit.evaluate(tmp_path / rate) for rate in rates] == results


@pytest.mark.parametrize("choice", ["model.arch=plain20-cifar", "model.shortcut=none"])
def test_a_network_without_shortcuts_cannot_skip(choice: str, noise: Path, tmp_path: Path) -> None:
    name = choice.partition("=")[2] if "plain" in choice else "resnet8-cifar"
    with pytest.raises(UserError) as failure:
        resnetkit.train(noise, recipe=tiny("model.zero_gamma=false", choice), out=tmp_path / "run")
    assert str(failure.value) == (
        f"optim.stochastic_depth=0.7: {name} has no shortcuts, so nothing would get past a block that is left out; "
        "set it to 0"
    )
    assert not (tmp_path / "run").exists()


def test_the_probability_is_below_one(noise: Path) -> None:
    with pytest.raises(UserError, match=r"optim\.stochastic_depth = 1\.0 in --set: must be a number in \[0, 1\)"):
        resnetkit.train(noise, recipe=tiny("optim.stochastic_depth=1.0"))


def test_a_frozen_backbone_cannot_skip(noise: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^optim\.stochastic_depth=0\.7: a frozen backbone leaves out no block; "):
        resnetkit.train(noise, recipe=tiny("optim.freeze=backbone"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()

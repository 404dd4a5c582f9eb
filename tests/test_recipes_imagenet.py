"""The ImageNet recipes: their numbers, their cost, repeated crops, sizes that grow, and a few steps of each."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import resnetkit
from resnetkit import cost as costs
from resnetkit import model, optim, runs
from resnetkit.cost import Cost, shown_at, training_cost, work
from resnetkit.data.loader import order, repeated, side_at
from resnetkit.errors import UserError
from resnetkit.events import Found
from resnetkit.model import architecture
from resnetkit.recipe import Augment, Recipe
from resnetkit.recipe_file import with_settings
from resnetkit.resolve import Resolved, resolve_length
from resnetkit.shipped import contract, recipes, shipped
from resnetkit.starting import cost_line
from resnetkit.terminal import amount
from resnetkit.training import resuming, training
from resnetkit.weights import open_model
from torchvision_shim import peer

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = [name for name in recipes() if name.startswith("imagenet-")]
OURS = [name for name in NAMES if name != "imagenet-paper"]
IMAGENET = 1_281_167  # training pictures
# As a user makes them small: 32 pixels, a network of eight layers, batches of six.
TINY = [
    "model.arch=resnet8-cifar",
    "model.stride=3x3",
    "data.size=32",
    "optim.batch=6",
    "optim.lr=0.01",
    "schedule.steps=3",
    "run.device=cpu",
    "run.threads=1",
]
SIZES = {"imagenet-torchvision-v2": [[0, 24]], "imagenet-a3": [[0, 24]], "imagenet-fast": [[0, 16], [0.5, 24]]}


def tiny(name: str, *settings: str) -> Recipe:
    own = [f"augment.sizes={json.dumps(SIZES[name])}"] if name in SIZES else []
    if name == "imagenet-paper":
        own = ["augment.sides=32,48"]
    if name == "imagenet-goyal":
        own = ["optim.ghost_batch=3"]
    return with_settings(shipped(name), [*TINY, *own, *settings])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, 8 pictures to train on and 2 to score: dark with a light square, and the other way round."""
    root = tmp_path_factory.mktemp("pictures") / "photos"
    dice = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 2)):
        for label, (ground, square) in {"dark": (60, 190), "light": (190, 60)}.items():
            folder = root / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                picture = dice.normal(ground, 25, (40, 44, 3))
                picture[10:30, 12:32] += square - ground
                Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
    return root


# A few steps of each


@pytest.mark.parametrize("name", NAMES)
def test_a_few_steps_of_every_recipe(name: str, pictures: Path, tmp_path: Path) -> None:
    finished = resnetkit.train(pictures, recipe=tiny(name), out=tmp_path / "run")
    assert finished.result.n == 4
    lines = runs.read_log(tmp_path / "run")
    assert lines[-1]["step"] == 3
    assert all(np.isfinite(line["train_loss"]) for line in lines)
    assert open_model(tmp_path / "run").preprocess.size == 32  # whatever it was trained at


@pytest.mark.parametrize("name", ["imagenet-a1", "imagenet-a2", "imagenet-fast"])
def test_a_resumed_run_ends_with_the_same_bits(name: str, pictures: Path, tmp_path: Path) -> None:
    """LAMB's moments, repeated crops, and sizes that change go through a checkpoint in the middle of an epoch."""
    recipe = tiny(name, "schedule.steps=7", "run.checkpoint_steps=1", "schedule.warmup_steps=1")
    whole = resnetkit.train(pictures, recipe=recipe, out=tmp_path / "whole")
    events = training(pictures, recipe=recipe, out=tmp_path / "cut")
    for event in events:
        if getattr(event, "step", 0) == 4:
            events.close()
    *_, end = resuming(tmp_path / "cut")
    assert (tmp_path / "cut" / "model.safetensors").read_bytes() == (whole.run / "model.safetensors").read_bytes()
    assert end.result == whole.result


def test_sizes_change_what_the_network_sees_and_not_what_is_scored(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps an epoch, eight steps: 16 pixels for two epochs, then 24; scores at 32."""
    seen: list[tuple[bool, int]] = []
    forward = model.ResNet.forward

    def noting(self: Any, x: torch.Tensor) -> torch.Tensor:
        if x.device.type != "meta":  # where multiply-adds are counted
            seen.append((self.training, x.shape[-1]))
        return forward(self, x)

    monkeypatch.setattr(model.ResNet, "forward", noting)
    resnetkit.train(pictures, recipe=tiny("imagenet-fast", "schedule.steps=8"), out=tmp_path / "run")
    assert [side for training, side in seen if training] == [16] * 4 + [24] * 4
    assert {side for training, side in seen if not training} == {32}


@pytest.mark.parametrize("switch", ["activation_checkpointing", "compile"])
def test_the_switches_of_the_run(switch: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same weights; compiled without generating code, which test_passes does."""
    compiling: list[object] = []
    real = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda module, **about: compiling.append(module) or real(module, backend="eager", **about)
    )
    plain = resnetkit.train(pictures, recipe=tiny("imagenet-goyal"), out=tmp_path / "plain")
    other = resnetkit.train(pictures, recipe=tiny("imagenet-goyal", f"run.{switch}=true"), out=tmp_path / "other")
    a, b = (open_model(run.run).network.state_dict() for run in (plain, other))
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert len(compiling) == (switch == "compile")


def test_cuda_graphs_are_a_gpus(pictures: Path, tmp_path: Path) -> None:
    recipe = tiny("imagenet-goyal", "run.compile=true", "run.cuda_graphs=true", "run.device=cpu")
    with pytest.raises(UserError, match=r'run\.cuda_graphs = true: a GPU replays them, and run\.device is "cpu"'):
        resnetkit.train(pictures, recipe=recipe, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Repeated crops


@given(st.integers(1, 300), st.integers(1, 6), st.integers(0, 5))
def test_an_epoch_shows_each_drawn_picture_so_often_and_in_a_row(n: int, repeats: int, epoch: int) -> None:
    shown = repeated(order(3, epoch, n), repeats).tolist()
    assert len(shown) == n
    counts = Counter(shown)
    *first, last = dict.fromkeys(shown)
    assert all(counts[picture] == repeats for picture in first)
    assert counts[last] == n - repeats * len(first) <= repeats
    assert shown == [picture for picture in dict.fromkeys(shown) for _ in range(counts[picture])]
    assert list(dict.fromkeys(shown)) == order(3, epoch, n)[: len(counts)].tolist()


def test_without_repeats_it_is_the_order_that_it_was() -> None:
    np.testing.assert_array_equal(repeated(order(7, 3, 1000), 1), order(7, 3, 1000))


def test_the_ranks_of_timms_sampler_see_these_places_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its ranks take every fourth place; put together again they are the order, each picture three times in a row."""
    sampler = peer("timm.data.distributed_sampler")
    n, ranks, repeats = 1024, 4, 3
    own = order(0, 0, n)
    monkeypatch.setattr(sampler.torch, "randperm", lambda *_, **__: torch.from_numpy(own))
    theirs = [list(sampler.RepeatAugSampler(range(n), ranks, rank, num_repeats=repeats)) for rank in range(ranks)]
    together = [int(place) for places in zip(*theirs, strict=True) for place in places]
    assert together == repeated(order(0, 0, n), repeats).tolist()


def test_copies_of_a_picture_get_other_crops(pictures: Path) -> None:
    from resnetkit.data.loader import Reader, training_batches
    from resnetkit.data.source import open_data
    from resnetkit.data.transforms import Preprocess

    data = open_data(str(pictures))
    preprocess = Preprocess(32, "shorter", 32, "bilinear", 3, "RGB", (0.5,) * 3, (0.25,) * 3, True)
    augment = Augment(crop="resized", repeats=3)
    reader = Reader(data, preprocess, threads=1)
    for batch in training_batches(reader, data.splits["train"], augment, seed=0, epoch=0, batch=6):
        assert sorted(Counter(batch.indices.tolist()).values()) == [3, 3]
        assert len({picture.tobytes() for picture in batch.pictures}) == 6


# Sizes


def test_sides_by_progress() -> None:
    augment = Augment(sizes=((0.0, 128), (0.4, 160), (0.75, 192)))
    at = {share: side_at(augment, share, 224) for share in (0.0, 0.39, 0.4, 0.74, 0.75, 1.0)}
    assert at == {0.0: 128, 0.39: 128, 0.4: 160, 0.74: 160, 0.75: 192, 1.0: 192}
    assert side_at(Augment(), 0.5, 224) == 224


@pytest.mark.parametrize(
    "setting",
    [
        "augment.sizes=[[0.1, 128]]",
        "augment.sizes=[[0, 128], [0, 160]]",
        "augment.sizes=[[0, 128], [1.0, 160]]",
        "augment.sizes=[[0, 0]]",
        "augment.sizes=[[0]]",
        "augment.sizes=128",
        "augment.repeats=0",
        "augment.ops=5",
        "augment.magnitude=11",
        "augment.erase_area=[0.5, 0.2]",
        "augment.policy=autoaugment",
        "optim.optimizer=adam",
        "optim.loss=mse",
        "optim.target_threshold=1.0",
        "schedule.warmup_share=1.0",
        "run.compile=1",
    ],
)
def test_what_a_key_does_not_take_is_said(setting: str) -> None:
    with pytest.raises(UserError, match=rf"^{re.escape(setting.partition('=')[0])} = .* in --set: must be "):
        with_settings(shipped("imagenet-a1"), [setting])


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("imagenet-a1", ["optim.nesterov=true"], r"optim\.nesterov = true in --set: is SGD's"),
        ("imagenet-goyal", ["optim.target_threshold=0.2"], r'needs optim\.loss = "bce"'),
        ("imagenet-a1", ["run.compile=true"], r"does not go with optim\.stochastic_depth"),
        ("imagenet-goyal", ["run.cuda_graphs=true"], r"run\.cuda_graphs = true in --set: needs run\.compile = true"),
        (
            "imagenet-goyal",
            ["run.cuda_graphs=true", "run.compile=true", "optim.accumulate=2"],
            r"needs optim\.accumulate = 1",
        ),
        (
            "imagenet-fast",
            ["run.compile=true", "run.activation_checkpointing=true"],
            r"does not go with run\.activation_checkpointing",
        ),
    ],
)
def test_what_does_not_go_together_is_said(name: str, settings: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        with_settings(shipped(name), settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.normalise=pixel-mean"], r"augment\.sizes: a mean picture fits one size alone"),
        (
            ["augment.crop=scale", "augment.sides=32,48", "augment.sizes=[[0, 40]]"],
            r"augment\.sizes=40 pixels does not",
        ),
    ],
)
def test_sizes_that_cannot_be_are_said(settings: list[str], message: str, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        resnetkit.train(pictures, recipe=tiny("imagenet-fast", *settings), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Cost


def resolved(name: str) -> Resolved:
    recipe = resolve_length(shipped(name), IMAGENET, [])
    recipe = replace(recipe, run=replace(recipe.run, device="cpu", precision="fp32"))
    return Resolved(recipe, architecture("resnet50"), None, ())  # type: ignore[arg-type]


@pytest.fixture
def no_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "picture_seconds", lambda *_, **__: 0.01)


@pytest.mark.usefixtures("no_timing")
@pytest.mark.parametrize("name", OURS)
def test_a_contract_states_the_cost(name: str) -> None:
    """Pictures and multiply-adds on ImageNet, as printed before the first step."""
    about = resolved(name)
    cost = training_cost(about.recipe, about.arch)
    assert f"Cost: {amount(cost.pictures)} pictures, {amount(cost.multiply_adds)} multiply-adds." in contract(name)
    assert "Never run on the whole of ImageNet" in contract(name)


@pytest.mark.usefixtures("no_timing")
def test_the_cost_is_counted_by_hand() -> None:
    """imagenet-fast: 16 epochs of 1251 steps; 12 of them at 160 pixels, whose multiply-adds are 100 / 196 of 224's."""
    about = resolved("imagenet-fast")
    pictures = 16 * 1251 * 1024
    assert shown_at(about.recipe) == pytest.approx({160: 0.75, 192: 0.25})
    forward = 0.75 * work(about.arch, 160) + 0.25 * work(about.arch, 192)
    cost = training_cost(about.recipe, about.arch)
    assert cost.pictures == pictures
    assert cost.multiply_adds == pytest.approx(3 * forward * pictures)
    assert work(about.arch, 224) == 4_089_184_256  # torchvision's 4.089 G for resnet50
    # a hundredth of a second at the largest side
    assert cost.seconds == pytest.approx(
        0.01 * pictures * (0.25 + 0.75 * work(about.arch, 160) / work(about.arch, 192))
    )


@pytest.mark.usefixtures("no_timing")
def test_the_cost_in_words() -> None:
    assert cost_line(resolved("imagenet-a3")) == (
        "cost: 128,000,000 pictures shown, 802 P multiply-adds; about 14 d 19 h on one such device, at 100 pictures a "
        "second: estimated from a few steps just now, without reading pictures and scoring"
    )


def test_short_trainings_are_not_timed(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "picture_seconds", None)
    events = training(pictures, recipe=tiny("imagenet-a3"), out=tmp_path / "run")
    (found,) = [event for event in events if isinstance(event, Found)]
    assert re.fullmatch(r"cost: 18 pictures shown, [\d.]+ M multiply-adds", found.lines[-1])


def test_steps_are_timed_on_the_device_that_trains() -> None:
    seconds = costs.picture_seconds(architecture("resnet8-cifar"), 32, 4, device="cpu", bf16=False)
    assert 0 < seconds < 60
    assert Cost(1, 1, seconds).seconds == seconds


# The numbers of the sources

TABLE_2 = {  # arXiv 2110.00476: epochs, sizes, rate, decay, smoothing, depth, repeats, magnitude, mixup
    "imagenet-a1": (600, (), 5e-3, 0.01, 0.1, 0.05, 3, 7.0, 0.2),
    "imagenet-a2": (300, (), 5e-3, 0.02, 0.0, 0.05, 3, 7.0, 0.1),
    "imagenet-a3": (100, ((0.0, 160),), 8e-3, 0.02, 0.0, 0.0, 1, 6.0, 0.1),
}


@pytest.mark.parametrize("name", TABLE_2)
def test_a1_to_a3_are_those_of_table_2(name: str) -> None:
    recipe = shipped(name)
    a, o = recipe.augment, recipe.optim
    found = (recipe.schedule.epochs, a.sizes, o.lr, o.weight_decay, o.label_smoothing, o.stochastic_depth)
    assert (*found, a.repeats, a.magnitude, a.mixup) == TABLE_2[name]
    assert (o.optimizer, o.loss, o.batch, a.cutmix, recipe.data.crop, recipe.data.size) == (
        ("lamb", "bce", 2048, 1.0, 0.95, 224)
    )
    assert (recipe.schedule.decay, a.policy, a.ops, a.magnitude_std) == ("cosine", "randaugment", 2, 0.5)
    length = resolve_length(recipe, IMAGENET, []).schedule
    assert length.warmup_steps == 5 * (IMAGENET // 2048)


def test_goyal_and_torchvision() -> None:
    goyal = resolve_length(shipped("imagenet-goyal"), IMAGENET, [])
    rate = [
        optim.learning_rate(goyal.schedule, 3.2, step, goyal.schedule.steps, int(goyal.schedule.warmup_steps))
        for step in (0, 5 * 156, 30 * 156, 60 * 156, 80 * 156)
    ]
    assert rate == pytest.approx([0.1 + 3.1 / 780, 3.2, 0.32, 0.032, 0.0032])
    first = resolve_length(shipped("imagenet-torchvision-v1"), IMAGENET, []).schedule
    assert (first.warmup_steps, first.steps, first.milestones) == (0, 90 * 5004, (1 / 3, 2 / 3))
    second = shipped("imagenet-torchvision-v2")
    adjusted = 1 - (1 - 0.99998) * 1024 * 32 / 600  # torchvision's script, of 32 steps
    assert second.optim.ema == pytest.approx(adjusted ** (1 / 32), abs=1e-6)
    assert round(second.data.size / second.data.crop) == 232  # type: ignore[operator]

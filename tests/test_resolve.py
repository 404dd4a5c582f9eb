"""What "auto" becomes, case by case as the table in docs/recipes.md says, and what is measured from the pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from resnetkit.data.audit import Audit, audit
from resnetkit.data.pictures import Arrays, Data
from resnetkit.data.transforms import Preprocess
from resnetkit.errors import UserError
from resnetkit.model import ResNet, architecture
from resnetkit.recipe import Recipe
from resnetkit.recipe_file import from_dict, to_dict, with_settings
from resnetkit.resolve import Resolved, resolve
from resnetkit.shipped import recipes, shipped
from resnetkit.weights import ModelFile

Pixels = NDArray[np.uint8]
CLASSES = ("ant", "bee", "cat")


def blank(train: int, sizes: list[tuple[int, int]], *, grey: bool = False) -> tuple[Data, Audit]:
    """Pictures of which only number and (width, height), in turns, are known; ten more of validation are far larger."""
    n = train + 10
    shape = np.array([sizes[i % len(sizes)] for i in range(train)] + [(5000, 5000)] * 10, np.int32)
    depth = 1 if grey else 3
    pixels = np.broadcast_to(np.zeros((1, 1, 1, 1), np.uint8), (n, 1, 1, depth))
    splits = {"train": np.arange(train), "val": np.arange(train, n)}
    data = Data("photos", Arrays(pixels, (("x", n),)), np.arange(n) % 3, CLASSES, splits)
    digest = np.zeros((n, 32), np.uint8)
    return data, Audit(np.arange(n), digest, shape[:, 0], shape[:, 1], {}, {}, grey, True)


def noise(train: int, val: int, size: int, channels: int) -> tuple[Data, Audit]:
    """Pictures of noise in memory; those of validation are brighter."""
    dice = np.random.default_rng(0)
    pixels = dice.integers(0, 200, (train + val, size, size, channels), dtype=np.uint8)
    pixels[train:] += 50
    splits = {"train": np.arange(train), "val": np.arange(train, train + val)}
    data = Data("photos", Arrays(pixels, (("x", train + val),)), np.arange(train + val) % 3, CLASSES, splits)
    return data, audit(data, threads=2)


def small(*settings: str) -> Recipe:
    return with_settings(shipped("small"), settings)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a recipe with its value."""
    for field in fields(value):
        inner = getattr(value, field.name)
        if is_dataclass(inner):
            yield from leaves(inner, f"{field.name}.")
        else:
            yield f"{path}{field.name}", inner


# The table


@dataclass(frozen=True)
class Expected:
    size: int
    stem: int
    crop: str
    channels: int
    batch: int
    lr: float
    epochs: float
    warmup: int  # 5 % of epochs x (pictures // batch) steps


CASES = [
    # pictures, sizes, grey, settings
    (60_000, [(28, 28)], True, [], Expected(32, 1, "pad", 1, 128, 0.1, 15, 351)),  # 15 x 468 steps
    (50_000, [(32, 32)], False, [], Expected(32, 1, "pad", 3, 128, 0.1, 15, 292)),  # 15 x 390
    (10_000, [(40, 40)], False, [], Expected(32, 1, "pad", 3, 128, 0.1, 20, 78)),  # 20 x 78
    (9_999, [(41, 41)], False, [], Expected(64, 2, "resized", 3, 64, 0.05, 20, 156)),  # 20 x 156
    (5_000, [(80, 80)], False, [], Expected(64, 2, "resized", 3, 64, 0.05, 40, 156)),  # 40 x 78
    (5_000, [(81, 81)], False, [], Expected(96, 2, "resized", 3, 64, 0.05, 40, 156)),
    (1_000, [(112, 112)], False, [], Expected(96, 2, "resized", 3, 64, 0.05, 60, 45)),  # 60 x 15
    (999, [(113, 113)], False, [], Expected(128, 4, "resized", 3, 32, 0.025, 60, 93)),  # 60 x 31
    (200, [(4000, 3000)], False, [], Expected(128, 4, "resized", 3, 32, 0.025, 60, 18)),  # 60 x 6
    (199, [(300, 300)], True, [], Expected(128, 4, "resized", 1, 16, 0.0125, 60, 36)),  # 60 x 12
    (10, [(300, 300)], False, [], Expected(128, 4, "resized", 3, 10, 0.0078125, 60, 3)),  # no more than there are
    # the median of the shorter sides, whichever side that is
    (300, [(500, 30), (33, 100), (900, 800)], False, [], Expected(32, 1, "pad", 3, 32, 0.025, 60, 27)),  # 60 x 9
    (300, [(90, 500), (500, 100), (20, 20)], False, [], Expected(96, 2, "resized", 3, 32, 0.025, 60, 27)),
    # what is given decides what follows from it
    (300, [(300, 300)], False, ["data.size=40"], Expected(40, 1, "pad", 3, 32, 0.025, 60, 27)),
    (300, [(300, 300)], False, ["data.size=41"], Expected(41, 2, "resized", 3, 32, 0.025, 60, 27)),
    (300, [(20, 20)], False, ["data.size=112"], Expected(112, 2, "resized", 3, 32, 0.025, 60, 27)),
    (300, [(20, 20)], False, ["data.size=113"], Expected(113, 4, "resized", 3, 32, 0.025, 60, 27)),
    (300, [(300, 300)], False, ["model.arch=resnet20-cifar"], Expected(128, 1, "resized", 3, 32, 0.025, 60, 27)),
    (300, [(300, 300)], False, ["model.stem_stride=2"], Expected(128, 2, "resized", 3, 32, 0.025, 60, 27)),
    (300, [(300, 300)], False, ["augment.crop=none"], Expected(128, 4, "none", 3, 32, 0.025, 60, 27)),
    (300, [(30, 30)], True, ["data.channels=3"], Expected(32, 1, "pad", 3, 32, 0.025, 60, 27)),
    (300, [(30, 30)], False, ["data.channels=1"], Expected(32, 1, "pad", 1, 32, 0.025, 60, 27)),
    (300, [(30, 30)], False, ["optim.batch=100"], Expected(32, 1, "pad", 3, 100, 0.078125, 60, 9)),  # 60 x 3
    (300, [(30, 30)], False, ["optim.batch=301"], Expected(32, 1, "pad", 3, 300, 0.234375, 60, 3)),  # 60 x 1
    (300, [(30, 30)], False, ["optim.lr=0.3"], Expected(32, 1, "pad", 3, 32, 0.3, 60, 27)),
    (300, [(30, 30)], False, ["schedule.epochs=2.5"], Expected(32, 1, "pad", 3, 32, 0.025, 22 / 9, 1)),  # whole steps
    (300, [(30, 30)], False, ["schedule.epochs=0.01"], Expected(32, 1, "pad", 3, 32, 0.025, 1 / 9, 0)),  # at least one
    (300, [(30, 30)], False, ["schedule.steps=90"], Expected(32, 1, "pad", 3, 32, 0.025, 10, 4)),
    (300, [(30, 30)], False, ["schedule.warmup_steps=7"], Expected(32, 1, "pad", 3, 32, 0.025, 60, 7)),
]


@pytest.mark.parametrize(("pictures", "sizes", "grey", "settings", "expected"), CASES, ids=str)
def test_auto_becomes_what_the_table_says(
    pictures: int, sizes: list[tuple[int, int]], grey: bool, settings: list[str], expected: Expected
) -> None:
    data, found = blank(pictures, sizes, grey=grey)
    resolved = resolve(small(*settings), data, found, None)
    recipe = resolved.recipe
    assert (
        Expected(
            recipe.data.size,  # type: ignore[arg-type]
            recipe.model.stem_stride,  # type: ignore[arg-type]
            recipe.augment.crop,
            recipe.data.channels,  # type: ignore[arg-type]
            recipe.optim.batch,  # type: ignore[arg-type]
            pytest.approx(recipe.optim.lr),
            pytest.approx(recipe.schedule.epochs),
            recipe.schedule.warmup_steps,  # type: ignore[arg-type]
        )
        == expected
    )
    assert recipe.schedule.steps == round(expected.epochs * (pictures // expected.batch))
    assert (resolved.arch.stem_stride, resolved.arch.channels) == (expected.stem, expected.channels)
    assert (resolved.preprocess.size, resolved.preprocess.channels) == (expected.size, expected.channels)


def printed(resolved: Resolved) -> dict[str, str]:
    """What a rule must say of each derived value, as a regular expression."""
    data, optim, schedule = resolved.recipe.data, resolved.recipe.optim, resolved.recipe.schedule
    return {
        "data.channels": rf"^{data.channels} channels: ",
        "data.size": rf"^input {data.size} pixels: ",
        "model.stem_stride": rf"^stem stride {resolved.recipe.model.stem_stride}: ",
        "augment.crop": rf"^crop '{resolved.recipe.augment.crop}': ",
        "optim.batch": rf"^batch {optim.batch}: ",
        "optim.lr": rf"^learning rate {optim.lr:g}: ",
        "schedule.epochs": rf"^{schedule.epochs:g} epochs: ",
        "schedule.warmup_steps": rf"^warm-up {schedule.warmup_steps} steps: ",
        "run.precision": rf"^{resolved.recipe.run.precision} convolutions: ",
    }


GIVEN = {
    "data.channels": "3",
    "data.size": "48",
    "model.stem_stride": "2",
    "augment.crop": "none",
    "optim.batch": "24",
    "optim.lr": "0.07",
    "schedule.epochs": "11",
    "schedule.warmup_steps": "5",
    "run.precision": "fp32",
}


@pytest.mark.parametrize(("train", "side"), [(300, 28), (5000, 90), (10, 300)])
def test_each_derived_value_has_a_rule_with_it(train: int, side: int) -> None:
    resolved = resolve(small(), *blank(train, [(side, side)]), None)
    for key, pattern in printed(resolved).items():
        assert [rule for rule in resolved.rules if re.search(pattern, rule)], key


@pytest.mark.parametrize("key", GIVEN)
def test_a_given_value_is_left_alone_and_has_no_rule(key: str) -> None:
    recipe = small(f"{key}={GIVEN[key]}")
    resolved = resolve(recipe, *blank(300, [(300, 300)]), None)
    table, name = key.split(".")
    assert getattr(getattr(resolved.recipe, table), name) == getattr(getattr(recipe, table), name)
    assert not any(re.search(printed(resolved)[key], rule) for rule in resolved.rules)


def test_all_given_is_all_left_alone() -> None:
    settings = [f"{key}={value}" for key, value in GIVEN.items()]
    settings += ["model.arch=resnet34", "model.shortcut=C", "model.stride=1x1", "run.device=cpu", "run.threads=3"]
    recipe = small(*settings)
    resolved = resolve(recipe, *blank(300, [(300, 300)]), None)
    changed = {key: value for key, value in leaves(resolved.recipe) if value != dict(leaves(recipe))[key]}
    assert changed == {"schedule.steps": 132}  # 11 epochs of 300 // 24 steps
    assert resolved.rules == ()


@pytest.mark.parametrize("name", [name for name in recipes() if name != "frozen"])  # which needs weights
@pytest.mark.parametrize("grey", [True, False])
def test_nothing_stays_open(name: str, grey: bool) -> None:
    recipe = with_settings(shipped(name), ["data.normalise=imagenet"])  # the blank pictures cannot be measured
    resolved = resolve(recipe, *blank(300, [(30, 30)], grey=grey), None)
    assert [key for key, value in leaves(resolved.recipe) if value == "auto"] == []
    assert from_dict(to_dict(resolved.recipe), where="recipe.json") == resolved.recipe
    again = resolve(resolved.recipe, *blank(300, [(30, 30)], grey=grey), None)
    assert (again.recipe, again.arch, again.preprocess) == (resolved.recipe, resolved.arch, resolved.preprocess)
    assert again.rules == ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["schedule.warmup_steps=18", "schedule.epochs=2"], "must be below schedule.steps = 18"),
        (["optim.accumulate=33"], "must not be above optim.batch = 32"),
    ],
    ids=str,
)
def test_what_cannot_be_together_shows_before_training(settings: list[str], message: str) -> None:
    """A run folder with such a recipe could not be resumed: reading it back would refuse it."""
    with pytest.raises(UserError, match=message):
        resolve(small(*settings), *blank(300, [(30, 30)]), None)


def test_the_network_is_the_recipes_with_the_classes_of_the_data() -> None:
    resolved = resolve(small(), *blank(300, [(300, 300)]), None)
    assert resolved.arch == architecture("resnet18", classes=3, zero_gamma=True)
    settings = ["model.arch=resnet50", "model.shortcut=C", "model.stride=1x1", "model.zero_gamma=false"]
    resolved = resolve(small(*settings), *blank(300, [(300, 300)]), None)
    assert resolved.arch == architecture("resnet50", classes=3, shortcut="C", stride="1x1")
    assert (resolved.recipe.model.arch, resolved.recipe.model.shortcut) == ("resnet50", "C")


@pytest.mark.parametrize(("crop", "resize_to"), [(1.0, 64), (0.875, 73), (0.5, 128)])
def test_the_crop_decides_what_pictures_are_resized_to(crop: float, resize_to: int) -> None:
    resolved = resolve(small(f"data.crop={crop}", "data.size=64"), *blank(300, [(300, 300)]), None)
    assert (resolved.preprocess.size, resolved.preprocess.resize_to) == (64, resize_to)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there() -> None:
    with pytest.raises(UserError, match=r'run\.device = "cuda": torch finds no CUDA device here'):
        resolve(small("run.device=cuda"), *blank(300, [(30, 30)]), None)
    assert resolve(small(), *blank(300, [(30, 30)]), None).recipe.run.device == "cpu"


# Weights to begin from

OWN = Preprocess(20, "shorter", 24, "box", 1, "RGB", (0.3,), (0.2,), True)


def weights(preprocess: Preprocess = OWN, **choices: Any) -> ModelFile:
    arch = architecture("resnet8-cifar", classes=7, channels=preprocess.channels, **choices)
    return ModelFile(ResNet(arch).eval(), tuple("abcdefg"), preprocess)


@pytest.mark.parametrize(
    "preprocess", [OWN, Preprocess(16, "shorter", 16, "bilinear", 3, "BGR", (0.1, 0.2, 0.3), (1.0,) * 3, True)]
)
def test_weights_bring_their_own_input_and_network(preprocess: Preprocess) -> None:
    given = weights(preprocess, shortcut="B", stem_stride=2)
    resolved = resolve(shipped("finetune"), *blank(300, [(300, 300)]), given)
    assert resolved.preprocess == preprocess
    assert resolved.arch == replace(given.network.arch, classes=3)
    recipe = resolved.recipe
    assert (recipe.data.size, recipe.data.channels) == (preprocess.size, preprocess.channels)
    assert (recipe.model.arch, recipe.model.shortcut, recipe.model.stem_stride) == ("resnet8-cifar", "B", 2)
    assert [key for key, value in leaves(recipe) if value == "auto"] == []
    named = f"resnet8-cifar, {preprocess.channels} channels: the weights' own"
    assert {f"input {preprocess.size} pixels: the weights' own", named} <= set(resolved.rules)


def test_a_size_of_ones_own_for_the_weights_of_others() -> None:
    recipe = with_settings(shipped("finetune"), ["data.size=40"])
    resolved = resolve(recipe, *blank(300, [(300, 300)]), weights())
    assert resolved.preprocess == replace(OWN, size=40, resize_to=40)
    assert [rule for rule in resolved.rules if "40 pixels" in rule] == []


@pytest.mark.parametrize("arch", ["resnet8-cifar", "auto"])
def test_the_weights_architecture_may_be_named(arch: str) -> None:
    recipe = with_settings(shipped("finetune"), [f"model.arch={arch}"])
    assert resolve(recipe, *blank(300, [(30, 30)]), weights()).arch.name == "resnet8-cifar"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.arch=resnet18", "model.arch=resnet18: the weights have resnet8-cifar; leave it out"),
        ("model.shortcut=B", "model.shortcut=B: the weights have A; leave it out"),
        ("model.stem_stride=4", "model.stem_stride=4: the weights have 1; leave it out"),
        ("data.channels=3", "data.channels=3: the weights have 1; leave it out"),
    ],
)
def test_what_the_weights_cannot_be(setting: str, message: str) -> None:
    recipe = with_settings(shipped("small"), [setting])
    with pytest.raises(UserError, match=re.escape(message)):
        resolve(recipe, *blank(300, [(30, 30)]), weights())


def test_a_mean_picture_fits_its_own_size_only() -> None:
    own = replace(OWN, size=4, resize_to=4, mean=(0.5,) * 16)
    recipe = shipped("finetune")
    assert resolve(recipe, *blank(300, [(30, 30)]), weights(own)).preprocess == own
    with pytest.raises(UserError, match=r"data\.size=8: the weights subtract a mean picture of 4 pixels"):
        resolve(with_settings(recipe, ["data.size=8"]), *blank(300, [(30, 30)]), weights(own))


# What is measured


@pytest.mark.parametrize("channels", [1, 3])
def test_measured_normalisation_is_that_of_the_training_pictures(channels: int) -> None:
    data, found = noise(40, 10, 6, channels)
    assert isinstance(data.pictures, Arrays)
    resolved = resolve(small("data.normalise=measured"), data, found, None)
    train = data.pictures.pixels[:40] / 255
    assert resolved.preprocess.channels == channels
    np.testing.assert_allclose(resolved.preprocess.mean, train.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(resolved.preprocess.std, train.std((0, 1, 2)), rtol=1e-9)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_mean_picture_is_that_of_the_training_pictures(channels: int) -> None:
    data, found = noise(40, 10, 6, channels)
    assert isinstance(data.pictures, Arrays)
    resolved = resolve(small("data.normalise=pixel-mean", "data.size=6"), data, found, None)
    expected = data.pictures.pixels[:40].mean(0).transpose(2, 0, 1) / 255
    own = resolved.preprocess
    np.testing.assert_allclose(np.reshape(own.mean, (channels, 6, 6)), expected, rtol=0, atol=0.5e-4 + 1e-12)
    assert own.std == (1.0,) * channels
    batch = torch.from_numpy(data.pictures.pixels[:40])
    assert own.normalise(batch).mean(0).abs().max() < 1e-4, "what the network gets is centred at each pixel"


def test_pictures_of_one_colour_are_not_divided_by_zero() -> None:
    pixels = np.full((12, 6, 6, 3), 77, np.uint8)
    splits = {"train": np.arange(8), "val": np.arange(8, 12)}
    data = Data("photos", Arrays(pixels, (("x", 12),)), np.arange(12) % 3, CLASSES, splits)
    own = resolve(small("data.normalise=measured"), data, audit(data, threads=1), None).preprocess
    assert own.mean == pytest.approx((77 / 255,) * 3)
    assert min(own.std) >= 0.01


@pytest.mark.parametrize(
    ("channels", "mean", "std"),
    [
        (3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # of torchvision's published weights
        (1, (0.449,), (0.226,)),  # their averages
    ],
)
def test_the_normalisation_of_imagenet(channels: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    own = resolve(small(f"data.channels={channels}"), *blank(300, [(30, 30)]), None).preprocess
    assert (own.mean, own.std) == (mean, std)

"""Recipes survive the way through TOML and JSON, and what is wrong in one is named as a person reads it."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resnetkit.errors import UserError
from resnetkit.recipe import Augment, Data, Model, Optim, Recipe, Run, Schedule
from resnetkit.recipe_file import LIMITS, dumps, from_dict, load, loads, to_dict, with_settings

BASES = {"small": Recipe(), "digits": Recipe(name="digits", optim=Optim(lr=0.05, batch=64))}

AUTO = st.just("auto")
SHARE = st.floats(0, 1)
BELOW_ONE = st.floats(0, 1, exclude_max=True)
ABOVE_ZERO = st.floats(0, 1, exclude_min=True)
POSITIVE = st.floats(0, exclude_min=True, allow_infinity=False)
NOT_NEGATIVE = st.floats(0, allow_infinity=False)
COUNT = st.integers(1, 2**40)
WORD = st.text(st.characters(codec="utf-8"))
LOW_HIGH = st.tuples(ABOVE_ZERO, ABOVE_ZERO).map(lambda pair: (min(pair), max(pair)))
MILESTONES = st.lists(st.floats(0, 1, exclude_min=True, exclude_max=True), unique=True, max_size=4)

# Written out, not derived from the annotations: the reader under test does that itself.
RECIPES = st.builds(
    Recipe,
    name=WORD,
    model=st.builds(
        Model,
        arch=WORD,
        shortcut=st.sampled_from(["auto", "A", "B", "C", "none"]),
        stride=st.sampled_from(["1x1", "3x3"]),
        stem_stride=st.sampled_from(["auto", 1, 2, 4]),
        zero_gamma=st.booleans(),
    ),
    data=st.builds(
        Data,
        size=COUNT | AUTO,
        resize=st.sampled_from(["shorter", "stretch"]),
        crop=ABOVE_ZERO,
        filter=st.sampled_from(["bilinear", "bicubic", "box", "lanczos"]),
        channels=st.sampled_from([1, 3, "auto"]),
        normalise=st.sampled_from(["imagenet", "measured", "pixel-mean", "weights"]),
        exif=st.booleans(),
        val=BELOW_ONE,
        bad=st.sampled_from(["stop", "skip"]),
    ),
    augment=st.builds(
        Augment,
        crop=st.sampled_from(["none", "pad", "resized", "scale", "auto"]),
        pad=st.integers(0, 99),
        scale=LOW_HIGH,
        ratio=LOW_HIGH,
        sides=st.tuples(COUNT, COUNT).map(sorted).map(tuple),
        flip=st.booleans(),
        colour=NOT_NEGATIVE,
        jitter=SHARE,
        erase=SHARE,
        repeats=COUNT,
        sizes=st.lists(COUNT, max_size=3).map(lambda sides: tuple((i / 4, side) for i, side in enumerate(sides))),
        policy=st.sampled_from(["none", "randaugment", "trivialaugment"]),
        ops=st.integers(1, 4),
        magnitude=st.floats(0, 10),
        magnitude_std=NOT_NEGATIVE,
        erase_area=LOW_HIGH.filter(lambda pair: pair[1] < 1),
        mixup=NOT_NEGATIVE,
        cutmix=NOT_NEGATIVE,
    ),
    optim=st.builds(
        Optim,
        lr=POSITIVE,
        momentum=st.floats(0.1, 0.99),
        nesterov=st.booleans(),
        weight_decay=NOT_NEGATIVE,
        decay_all=st.booleans(),
        batch=st.integers(64, 512) | AUTO,
        accumulate=st.integers(1, 64),
        clip=NOT_NEGATIVE,
        label_smoothing=BELOW_ONE,
        ema=BELOW_ONE,
        freeze=st.sampled_from(["none", "stem", "layer1", "layer2", "layer3", "backbone"]),
        layer_decay=ABOVE_ZERO,
        loss=st.just("bce"),
        target_threshold=BELOW_ONE,
    ),
    schedule=st.builds(
        Schedule,
        epochs=POSITIVE | AUTO,
        steps=st.integers(100, 10**6) | st.just(0),
        decay=st.sampled_from(["cosine", "step"]),
        milestones=MILESTONES.map(sorted).map(tuple),
        gamma=ABOVE_ZERO,
        warmup_steps=st.integers(0, 99) | AUTO,
        warmup=st.sampled_from(["linear", "constant"]),
        warmup_start=SHARE,
        warmup_share=BELOW_ONE,
    ),
    run=st.builds(
        Run,
        seed=st.integers(0, 2**63 - 1),
        device=st.sampled_from(["auto", "cpu", "cuda"]),
        precision=st.sampled_from(["auto", "fp32", "bf16"]),
        channels_last=st.booleans(),
        deterministic=st.booleans(),
        activation_checkpointing=st.booleans(),
        threads=COUNT | AUTO,
        cache_mb=st.integers(0, 10**6),
        eval_epochs=COUNT,
        checkpoint_steps=COUNT,
        checkpoint_minutes=POSITIVE,
    ),
)


def message(text: str) -> str:
    """The error of a recipe file with this text."""
    with pytest.raises(UserError) as caught:
        loads(text, where="my.toml", bases=BASES)
    return str(caught.value)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(RECIPES)
def test_a_recipe_survives_toml_and_json(recipe: Recipe) -> None:
    tables = to_dict(recipe)
    assert from_dict(tables, where="x") == recipe
    assert from_dict(json.loads(json.dumps(tables)), where="x") == recipe
    assert tomllib.loads(dumps(recipe)) == tables
    assert loads(dumps(recipe), where="x") == recipe


def test_a_recipe_survives_a_file(tmp_path: Path) -> None:
    recipe = replace(
        Recipe(), name='Birne, "Apfel" & Öl \U0001f350\\ \n\t\x00\x7f', schedule=Schedule(milestones=(0.4, 0.8))
    )
    path = tmp_path / "mine.toml"
    path.write_text(dumps(recipe), encoding="utf-8")
    assert load(path) == recipe
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))  # as an editor on Windows saves it
    assert load(path) == recipe


def test_the_file_says_what_each_key_takes() -> None:
    lines = dumps(Recipe()).splitlines()
    assert 'decay = "cosine"  # "cosine" or "step"' in lines
    assert 'batch = "auto"  # an integer >= 1 or "auto"' in lines
    assert "scale = [0.25, 1.0]  # an array of 2 numbers with 0 < low <= high <= 1" in lines
    assert "# The optimizer and what changes the loss." in lines


def test_a_file_gives_only_what_differs_from_its_base() -> None:
    assert loads("", where="x") == Recipe()
    assert loads("optim.lr = 1", where="x") == Recipe(optim=Optim(lr=1.0))
    digits = BASES["digits"]
    changed = loads('base = "digits"\n[optim]\nlr = 0.2\n[run]\nseed = 3', where="x", bases=BASES)
    assert changed == replace(digits, optim=replace(digits.optim, lr=0.2), run=Run(seed=3))


def test_an_integer_becomes_the_float_it_stands_for() -> None:
    recipe = loads("optim.lr = 1\nschedule.epochs = 3\naugment.scale = [1, 1]", where="x")
    assert [type(value) for value in (recipe.optim.lr, recipe.schedule.epochs, *recipe.augment.scale)] == [float] * 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optim.lrr = 1", "optim.lrr: no such key in my.toml; did you mean 'optim.lr'?"),
        ("lr = 1", "lr: no such key in my.toml; did you mean 'optim.lr'?"),
        ("optim.flip = true", "optim.flip: no such key in my.toml; did you mean 'augment.flip'?"),
        ("optimiser.lr = 1", "optimiser: no such key in my.toml; did you mean 'optim'?"),
        ("model.wheels = 4", "model.wheels: no such key in my.toml; choose from model.arch, model.shortcut, "
         "model.stride, model.stem_stride, model.zero_gamma, model.preactivation, model.norm, model.init"),
        ("optim = 3", "optim = 3 in my.toml: must be a table, [optim]"),
        ("name.x = 3", 'name = {"x" = 3} in my.toml: must be text in quotes'),
        ("optim.nesterov = 1", "optim.nesterov = 1 in my.toml: must be true or false"),
        ("optim.momentum = true", "optim.momentum = true in my.toml: must be a number in [0, 1)"),
        ("run.seed = 1.0", "run.seed = 1.0 in my.toml: must be an integer in [0, 2**63)"),
        ("run.eval_epochs = true", "run.eval_epochs = true in my.toml: must be an integer >= 1"),
        ("optim.lr = nan", "optim.lr = nan in my.toml: must be a number > 0 or \"auto\""),
        (f"optim.lr = 1{'0' * 400}", f"optim.lr = 1{'0' * 400} in my.toml: must be a number > 0 or \"auto\""),
        ("data.size = 2024-01-01", 'data.size = 2024-01-01 in my.toml: must be an integer >= 1 or "auto"'),
        ('data.size = "aut"', "data.size = \"aut\" in my.toml: must be an integer >= 1 or \"auto\"; "
         "did you mean 'auto'?"),
        ('augment.crop = "padd"', 'augment.crop = "padd" in my.toml: must be "none", "pad", "resized", '
         '"scale" or "auto"; '
         "did you mean 'pad'?"),
        ("augment.scale = [0.5]", "augment.scale = [0.5] in my.toml: "
         "must be an array of 2 numbers with 0 < low <= high <= 1"),
        ("augment.sides = [480, 256]", "augment.sides = [480, 256] in my.toml: "
         "must be an array of 2 integers with 0 < low <= high"),
        ("augment.sides = [256.5, 480]", "augment.sides = [256.5, 480] in my.toml: "
         "must be an array of 2 integers with 0 < low <= high"),
        ("schedule.milestones = [0.8, 0.4]", "schedule.milestones = [0.8, 0.4] in my.toml: "
         "must be an array of numbers increasing in (0, 1)"),
        ("model.stem_stride = 3", 'model.stem_stride = 3 in my.toml: must be an integer among 1, 2, 4 or "auto"'),
        ("optim = {nesterov = true, momentum = 0}", "optim.nesterov = true in my.toml: needs optim.momentum > 0"),
        ("optim = {batch = 4, accumulate = 8}", "optim.accumulate = 8 in my.toml: must not be above optim.batch = 4"),
        ("schedule = {steps = 5, warmup_steps = 5}", "schedule.warmup_steps = 5 in my.toml: "
         "must be below schedule.steps = 5"),
        ('base = "digit"', 'base = "digit" in my.toml: must be "small" or "digits"; did you mean \'digits\'?'),
        ("base = [1]", 'base = [1] in my.toml: must be "small" or "digits"'),
        ("\n[optim\nlr = 1", "my.toml, line 2, column 7: not TOML: expected ']' at the end of a table declaration"),
        ("\nname = ", "my.toml, line 2: not TOML: invalid value"),
        ('a = "x\n', "my.toml, line 1, column 7: not TOML: illegal character '\\n'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(text: str, expected: str) -> None:
    assert message(text) == expected


@pytest.mark.parametrize("key", sorted(LIMITS))
def test_every_limit_is_about_a_key_and_refuses_something(key: str) -> None:
    table, name = key.split(".")
    value = to_dict(Recipe())[table][name]
    wrong: Any = [-1.0, -1.0] if isinstance(value, list) else -1
    assert message(f"{key} = {wrong}").startswith(f"{key} = {wrong} in my.toml: must be ")


@pytest.mark.parametrize("text", ["a = " + "[" * 5000, "a = " + "9" * 5000])
def test_a_hostile_file_is_only_an_error(text: str) -> None:
    assert message(text).startswith("my.toml: not a TOML file that can be read: ")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    with pytest.raises(UserError, match=r"mine\.toml: no such recipe file$"):
        load(path)
    path.write_bytes(b'name = "a"\n# caf\xe9\n')
    with pytest.raises(UserError, match=r"mine\.toml, line 2: byte 0xe9 is not UTF-8 text; save the file as UTF-8$"):
        load(path)
    with pytest.raises(UserError, match=r": the recipe cannot be read: Is a directory$"):
        load(tmp_path)


def test_settings() -> None:
    recipe = with_settings(
        Recipe(),
        [
            "optim.lr=0.05",
            "augment.flip=false",
            "schedule.milestones=0.4,0.8",
            "augment.scale = [0.5, 1]",
            "model.arch=resnet50",
            'name="a=b"',
            "run.seed=1",
            "run.seed=2",  # the later one holds
        ],
    )
    assert recipe == Recipe(
        name="a=b",
        model=Model(arch="resnet50"),
        augment=Augment(flip=False, scale=(0.5, 1.0)),
        optim=Optim(lr=0.05),
        schedule=Schedule(milestones=(0.4, 0.8)),
        run=Run(seed=2),
    )
    assert with_settings(Recipe(), ["schedule.milestones=0.5,"]).schedule.milestones == (0.5,)
    assert with_settings(Recipe(), []) == Recipe()


def test_settings_that_hold_only_together_come_in_any_order() -> None:
    recipe = Recipe(optim=Optim(momentum=0.0))
    assert with_settings(recipe, ["optim.nesterov=true", "optim.momentum=0.9"]).optim.nesterov
    with pytest.raises(UserError, match=r"^optim\.nesterov = true in --set: needs optim\.momentum > 0$"):
        with_settings(recipe, ["optim.nesterov=true"])


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("optim.lr", "--set optim.lr: write KEY=VALUE, such as optim.lr=0.05"),
        ("=3", "--set =3: write KEY=VALUE, such as optim.lr=0.05"),
        ("optim.lr=", 'optim.lr = "" in --set: must be a number > 0 or \"auto\"'),
        ("optim.lr=fast", 'optim.lr = "fast" in --set: must be a number > 0 or "auto"; did you mean \'auto\'?'),
        ("optim.lr=1\nx=2", 'optim.lr = "1\\nx=2" in --set: must be a number > 0 or \"auto\"'),
        ("optim.lr.x=1", 'optim.lr = {"x" = 1} in --set: must be a number > 0 or \"auto\"'),
        ("optm.lr=1", "optm: no such key in --set; did you mean 'optim'?"),
        ("schedule.milestones=0.5,x", 'schedule.milestones = [0.5, "x"] in --set: '
         "must be an array of numbers increasing in (0, 1)"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_named(setting: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        with_settings(Recipe(), [setting])
    assert str(caught.value) == expected


def test_importing_it_loads_neither_torch_nor_numpy() -> None:
    code = "import sys, resnetkit.recipe_file; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"

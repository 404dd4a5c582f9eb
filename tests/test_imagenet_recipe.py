"""`imagenet-paper`: one training step of every network of tables 2 and 3, on crops of two photographs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import resnetkit
from resnetkit import runs
from resnetkit.loop import fresh
from resnetkit.recipe_file import with_settings
from resnetkit.shipped import shipped
from resnetkit.weights import open_model

# Sec. 3.4, what a single step does not reach too, and that none of what came after the paper is on.
PAPER: dict[str, dict[str, Any]] = {
    "model": {"stride": "1x1", "zero_gamma": False, "preactivation": False, "norm": "batch", "init": "he"},
    "data": {"resize": "shorter", "crop": 0.875, "channels": 3, "normalise": "pixel-mean", "exif": False},
    "augment": {"crop": "scale", "flip": True, "colour": 0.1, "jitter": 0, "erase": 0, "mixup": 0, "cutmix": 0},
    "optim": {"momentum": 0.9, "nesterov": False, "weight_decay": 1e-4, "decay_all": True, "label_smoothing": 0},
    "schedule": {"decay": "step", "milestones": [0.25, 0.5, 0.75], "gamma": 0.1, "warmup_steps": 0},
    "run": {"precision": "fp32"},
}
SMALL = ["data.size=64", "augment.sides=73,137", "model.stem_stride=4"]  # 256 to 480 of 224, in proportion
# At 0.1 a first step on three pictures throws these networks so far off that their outputs overflow: the running
# statistics of batch normalisation, which evaluation uses, are then still nine tenths of those they began with.
SLOWLY = [*SMALL, "optim.lr=0.0001"]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's two photographs of 640x427, cut into four pictures to train on and one kept back each."""
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is the extra 'demo'")
    folder = tmp_path_factory.mktemp("data") / "photographs"
    for name, pixels in zip(("china", "flower"), datasets.load_sample_images().images, strict=True):
        boxes = [("train", 0, 0), ("train", 0, 340), ("train", 207, 0), ("train", 207, 340), ("val", 100, 170)]
        for number, (split, top, left) in enumerate(boxes):
            place = folder / split / name
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[top : top + 220, left : left + 300]).save(place / f"{number}.jpg", quality=90)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    """A run folder that is gone afterwards: those of the deep networks are a gigabyte."""
    yield tmp_path / "run"
    shutil.rmtree(tmp_path / "run", ignore_errors=True)


NETWORKS = [
    # architecture, shortcut that is asked for, shortcut that it has, million parameters with 2 classes, settings;
    # the counts are torchvision's but for 998 rows of the dense layer and for what A and C leave out and add
    ("plain18", "auto", "none", 11.0, SMALL),
    ("plain34", "auto", "none", 21.1, SMALL),
    ("resnet18", "A", "A", 11.0, SMALL),
    ("resnet34", "A", "A", 21.1, SMALL),
    ("resnet34", "B", "B", 21.3, SMALL),
    pytest.param("resnet34", "C", "C", 22.2, SLOWLY, marks=pytest.mark.slow),
    ("resnet50", "auto", "B", 23.5, []),  # as the recipe is, 224 pixels
    pytest.param("resnet101", "B", "B", 42.5, SLOWLY, marks=pytest.mark.slow),
    pytest.param("resnet152", "B", "B", 58.1, SLOWLY, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("arch", "asked", "shortcut", "millions", "settings"), NETWORKS)
def test_one_step_of_every_network(
    arch: str, asked: str, shortcut: str, millions: float, settings: list[str], photographs: Path, run: Path
) -> None:
    changed = [f"model.arch={arch}", f"model.shortcut={asked}", "optim.batch=3", "schedule.steps=1", "run.device=cpu"]
    recipe = with_settings(shipped("imagenet-paper"), [*changed, *settings])
    finished = resnetkit.train(photographs, recipe=recipe, out=run)
    assert finished.result.n == 2

    rate = 0.0001 if settings is SLOWLY else 0.1
    model = open_model(run)
    network, preprocess, size = model.network, model.preprocess, 64 if settings else 224
    has = network.arch
    assert (has.name, has.shortcut, has.stride, has.stem_stride) == (arch, shortcut, "1x1", 4)
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 1) == millions
    assert (preprocess.size, preprocess.resize_to, preprocess.std) == (size, round(size / 0.875), (1.0, 1.0, 1.0))
    assert len(preprocess.mean) == 3 * size**2

    before = dict(fresh(has, seed=0).named_parameters())
    still = []
    for name, parameter in network.named_parameters():
        assert torch.isfinite(parameter).all(), name
        decayed = before[name] * (1 - rate * 1e-4)  # where decay alone would have left it
        if torch.allclose(parameter, decayed, rtol=1e-6, atol=1e-9):
            still.append(name)
    assert still == []

    written = json.loads((run / "recipe.json").read_text(encoding="utf-8"))
    (line,) = runs.read_log(run)
    assert (line["step"], line["lr"]) == (1, rate)
    assert 0 < line["train_loss"] < 20
    for table, expected in PAPER.items():
        assert {key: written[table][key] for key in expected} == expected
    assert written["augment"]["sides"] == ([73, 137] if settings else [256, 480])
    assert (written["data"]["size"], written["model"]["stem_stride"], written["optim"]["lr"]) == (size, 4, rate)


def test_the_length_is_that_of_the_paper() -> None:
    recipe = shipped("imagenet-paper")
    assert (recipe.optim.lr, recipe.optim.batch, recipe.schedule.steps) == (0.1, 256, 600_000)
    assert (recipe.data.size, recipe.augment.sides, recipe.model.arch) == (224, (256, 480), "resnet50")
    assert round(recipe.optim.batch * recipe.schedule.steps / 1_281_167) == 120  # epochs of ImageNet

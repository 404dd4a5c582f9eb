"""Every engine gives the answers of the network itself: whole family, both inputs, any batch, in any order."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from resnetkit.data.transforms import Preprocess
from resnetkit.engines.engine import Engine, Pixels, version
from resnetkit.engines.files import INPUTS, Input, read
from resnetkit.engines.starting import start
from resnetkit.engines.writing import write
from resnetkit.exporting import SUFFIXES
from resnetkit.model import ResNet, architecture
from resnetkit.weights import ModelFile

ENGINES = ("onnx", "openvino", "mnn")
SIZE = 64
COLOUR = Preprocess(SIZE, "shorter", 72, "bilinear", 3, "RGB", (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), exif=True)
# Sums of thousands of products in another order, and MNN's Winograd transforms: measured 5e-6 of the largest logit.
TOLERANCE = 5e-5


def make_model(name: str, preprocess: Preprocess = COLOUR, **choices: Any) -> ModelFile:
    """Random weights, with statistics that are not those of a new network, so that folding matters."""
    torch.manual_seed(0)
    network = ResNet(architecture(name, classes=7, channels=preprocess.channels, **choices)).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.7, 1.5)
                module.weight.uniform_(0.5, 1)
                module.bias.normal_(0, 0.2)
    return ModelFile(network, tuple("abcdefg"), preprocess)


def pictures(n: int, preprocess: Preprocess = COLOUR) -> Pixels:
    dice = np.random.default_rng(1)
    size, channels = preprocess.size, preprocess.channels
    return (
        (dice.integers(0, 256, (n, 1, 1, channels)) + dice.normal(0, 40, (n, size, size, channels)))
        .clip(0, 255)
        .astype(np.uint8)
    )


def expected(model: ModelFile, given: Pixels) -> Any:
    with torch.inference_mode():
        return model.network(model.preprocess.normalise(torch.from_numpy(given))).numpy()


def engine_of(model: ModelFile, name: str, folder: Path, input: Input = "uint8") -> Engine:
    if version(name) is None:
        pytest.skip(f"{name} is not installed")
    made = folder / f"m{SUFFIXES[name]}"
    write(model, name, made, input)
    return start(name, read(made), threads=1)


def check(engine: Engine, model: ModelFile, batches: tuple[int, ...] = (1, 2, 5)) -> None:
    given = pictures(max(batches), model.preprocess)
    wanted = expected(model, given)
    for batch in batches:
        answers = engine(given[:batch])
        assert answers.dtype == np.float32
        np.testing.assert_allclose(answers, wanted[:batch], rtol=0, atol=TOLERANCE * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("network", "input"),
    [("resnet18", "uint8"), ("resnet50", "uint8"), ("resnet50d", "float"), *(("resnet20-cifar", i) for i in INPUTS)],
)
@pytest.mark.parametrize("name", ENGINES)
def test_answers_are_the_networks(name: str, network: str, input: Input, tmp_path: Path) -> None:
    """Also after the batch has changed, there and back."""
    model = make_model(network)
    check(engine_of(model, name, tmp_path, input), model, (1, 2, 5, 1, 5))


@pytest.mark.parametrize("network", ["resnet18", "resnet50", "resnet20-cifar", "resnet50d"])
def test_torch_with_folded_normalisation_answers_alike(network: str) -> None:
    from resnetkit.engines import torch as engine

    model = make_model(network)
    check(engine.load(model, threads=torch.get_num_threads()), model)


FAMILY = {
    "pre-activation": ("resnetv2_50", COLOUR, {}),
    "groups and squeeze": ("seresnext50_32x4d", COLOUR, {}),
    "caffe": ("resnet50-caffe", COLOUR, {}),
    "plain": ("plain20-cifar", COLOUR, {}),
    "no normalisation": ("resnet18", COLOUR, {"norm": "none"}),
    "BGR": ("resnet18", replace(COLOUR, order="BGR"), {}),
    "grey": ("resnet20-cifar", replace(COLOUR, channels=1, mean=(0.4,), std=(0.2,)), {}),
    "pixel mean": ("resnet20-cifar", replace(COLOUR, size=8, mean=tuple(np.linspace(0, 1, 192).tolist())), {}),
    "odd size": ("resnet18", replace(COLOUR, size=33), {}),
    "odd size, average pooling": ("resnet50d", replace(COLOUR, size=65), {}),
    "shortcuts everywhere": ("resnet18", COLOUR, {"shortcut": "C"}),
}


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("kind", FAMILY)
def test_the_whole_family_goes(kind: str, name: str, tmp_path: Path) -> None:
    network, preprocess, choices = FAMILY[kind]
    model = make_model(network, preprocess, **choices)
    check(engine_of(model, name, tmp_path), model, (1, 3))


@pytest.mark.parametrize("name", ENGINES)
def test_an_answer_is_its_callers_own(name: str, tmp_path: Path) -> None:
    """The next run does not write over it, and the pictures are as they were."""
    model = make_model("resnet8-cifar")
    engine, given = engine_of(model, name, tmp_path), pictures(4)
    before = given.copy()
    first = engine(given[:2])
    kept = first.copy()
    engine(given[2:])
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(given, before)


@pytest.mark.parametrize("name", ENGINES)
def test_other_threads_go_on(name: str, tmp_path: Path) -> None:
    """While an engine runs, Python threads can decode: it lets go of the interpreter lock."""
    model = make_model("resnet18", replace(COLOUR, size=224, resize_to=224))
    engine, given = engine_of(model, name, tmp_path), pictures(8, model.preprocess)
    engine(given)
    turns, running = 0, True

    def count() -> None:
        nonlocal turns
        while running:
            turns += 1

    thread = threading.Thread(target=count)
    thread.start()
    before = turns
    engine(given)
    during = turns - before
    running = False
    thread.join()
    assert during > 1000, "a thread that holds the lock is not interrupted for as long as this takes"

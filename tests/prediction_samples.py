"""A small model, pictures, and an engine that answers at once, for the tests of prediction."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from resnetkit.about import About
from resnetkit.data.transforms import Preprocess
from resnetkit.engines.engine import Logits, Pixels
from resnetkit.engines.opening import Opened

if TYPE_CHECKING:  # processes with a model that is a function start fast
    from resnetkit.weights import ModelFile

CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu")
COLOUR = Preprocess(10, "shorter", 12, "bilinear", 3, "RGB", (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), True)
GREY = Preprocess(10, "stretch", 10, "lanczos", 1, "RGB", (0.4,), (0.2,), True)


def make_model(preprocess: Preprocess = COLOUR) -> ModelFile:
    """A small network as it is before any training, which answers at random."""
    import torch

    from resnetkit.model import ResNet, architecture
    from resnetkit.weights import ModelFile

    torch.manual_seed(0)
    network = ResNet(architecture("resnet8-cifar", classes=len(CLASSES), channels=preprocess.channels))
    return ModelFile(network.eval(), CLASSES, preprocess, {"top1": 0.5}, {"seed": 1})


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (14, 17)) -> Path:
    """A PNG of one colour with noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dice = np.random.default_rng(seed)
    pixels = dice.integers(0, 256, 3) + dice.normal(0, 40, (*size, 3))
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)
    return path


def logits(pictures: Pixels) -> Logits:
    """A function of each picture by itself, and of it alone."""
    means = pictures.reshape(len(pictures), -1).astype(np.float64).mean(1)
    return np.stack([np.sin(means * (i + 1)) for i in range(len(CLASSES))], 1).astype(np.float32)


def opened(run: Callable[[Pixels], Logits] = logits, temperature: float = 1.0) -> Opened:
    """A model without a file, in an engine that is a function."""
    calibration = {} if temperature == 1 else {"temperature": temperature}
    return Opened(About({}, CLASSES, COLOUR, calibration=calibration), run, "stub", "there is no other", "fp32")

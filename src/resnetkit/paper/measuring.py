"""What is measured on the network of a finished run, beside its score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnetkit.data.loader import Reader, default_threads, evaluation_batches, order
from resnetkit.data.pictures import Data
from resnetkit.loop import fresh
from resnetkit.model import ResNet
from resnetkit.paper.deepen import deepened
from resnetkit.paper.signals import signals
from resnetkit.weights import ModelFile, open_model, place

BATCH = 256  # training pictures on which responses and gradients are taken
DEEPER = {20: 56}  # layers of a plain network to those of the deeper one that is built from it


def measure(folder: Path, data: Data, seed: int, device: str) -> dict[str, Any]:
    """Everything that the page shows of a CIFAR network beyond its curves.

    train      correct answers on the training pictures, single view, as in evaluation
    start, end variance of responses (Figure 7) and norm of gradients by layer, before and after training
    deepened   of plain-20: correct answers of the 56-layer network built from it, and the largest difference of logits
    """
    model = open_model(folder)
    network = place(model.network, torch.device(device))
    reader = Reader(data, model.preprocess, threads=default_threads())
    train = data.splits["train"]
    pictures, labels = batch_of(reader, train[order(seed, 0, len(train))[:BATCH]], device)
    measured: dict[str, Any] = {}
    measured["start"] = signals(place(fresh(network.arch, seed), torch.device(device)), pictures, labels)
    measured |= compare(model, network, reader, train)
    # Last, because it moves the batch statistics.
    measured["end"] = signals(network, pictures, labels)
    return measured


def batch_of(reader: Reader, indices: NDArray[np.int64], device: str) -> tuple[Tensor, Tensor]:
    """Normalised pictures without augmentation, and their labels."""
    (batch,) = evaluation_batches(reader, indices, batch=len(indices))
    pictures, labels = batch.to(device)
    return reader.preprocess.normalise(pictures), labels


def compare(model: ModelFile, network: ResNet, reader: Reader, indices: NDArray[np.int64]) -> dict[str, Any]:
    """Correct answers of the network and, of a plain one of `DEEPER`, of the deeper one that is built from it."""
    family, _, depth = network.arch.name.removesuffix("-cifar").partition("plain")
    layers = DEEPER.get(int(depth)) if not family and depth and network.arch.norm == "batch" else None
    deep = deepened(network, f"plain{layers}-cifar") if layers else None
    if deep is not None:
        deep = place(deep, next(network.parameters()).device)
    network.eval()
    correct, correct_deep, difference = 0, 0, 0.0
    for batch in evaluation_batches(reader, indices, batch=BATCH):
        device = next(network.parameters()).device
        pictures, y = batch.to(device)
        x = model.preprocess.normalise(pictures)
        with torch.inference_mode():
            logits = network(x)
            correct += int((logits.argmax(1) == y).sum())
            if deep is not None:
                other = deep(x)
                correct_deep += int((other.argmax(1) == y).sum())
                difference = max(difference, float((logits - other).abs().max()))
    found: dict[str, Any] = {"train": {"n": len(indices), "correct": correct}}
    if deep is not None:
        found["deepened"] = {"layers": layers, "correct": correct_deep, "largest_difference": difference}
    return found

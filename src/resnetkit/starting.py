"""What training starts from: other people's weights, and the first lines that a person reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from resnetkit.about import MODEL_FILE
from resnetkit.cost import training_cost
from resnetkit.data.audit import Audit
from resnetkit.data.pictures import Data, count
from resnetkit.data.transforms import Preprocess
from resnetkit.errors import UserError
from resnetkit.loop import State
from resnetkit.model import Architecture, ResNet
from resnetkit.optim import parameter_groups
from resnetkit.peers.hub import CONFIG
from resnetkit.peers.sources import load, open_source
from resnetkit.recipe import Recipe
from resnetkit.resolve import GREY_MEAN, GREY_STD, IMAGENET_MEAN, IMAGENET_STD, Resolved
from resnetkit.runs import Environment
from resnetkit.tensorfile import read
from resnetkit.terminal import amount, duration
from resnetkit.weights import ModelFile, asked_architecture, open_model


def starting_weights(source: str | Path, recipe: Recipe) -> ModelFile:
    """The model that training begins from: a run, a model file, or what `resnet import` takes and lies here.

    A state dict alone says nothing of its pictures: ImageNet's mean and deviation are then assumed, and said.
    """
    path = Path(source)
    if (path / MODEL_FILE).exists() or (path.is_dir() and not (path / CONFIG).exists()):
        return open_model(path, several=True)
    if path.suffix == ".safetensors" and path.exists() and read(path)[1] is not None:
        return open_model(path, several=True)
    opened = open_source(path)
    arch, tensors = opened.stated.arch, opened.tensors
    if arch is None:
        if recipe.model.arch == "auto":
            raise UserError(f"{path}: holds weights alone; say whose they are, for example with: --model resnet18")
        if "fc.weight" not in tensors or "conv1.weight" not in tensors:
            raise UserError(f"{path}: no ResNet's state dict: it lacks conv1.weight or fc.weight")
        classes, channels = len(tensors["fc.weight"]), tensors["conv1.weight"].shape[1]
        arch = asked_architecture(recipe.model, classes=classes, channels=channels)
    network = load(arch, opened)
    return ModelFile(network, opened.stated.classes or (), opened.stated.preprocess or assumed(arch))


def assumed(arch: Architecture) -> Preprocess:
    """The preprocessing of weights that state none: the usual size, ImageNet's mean and deviation."""
    size = 32 if arch.stem_stride == 1 else 224
    mean, std = (GREY_MEAN, GREY_STD) if arch.channels == 1 else (IMAGENET_MEAN, IMAGENET_STD)
    return Preprocess(size, "shorter", size, "bilinear", arch.channels, "RGB", mean, std, True)


def fill(state: State, given: ModelFile, *, same_head: bool) -> None:
    """Copy the given weights into the network and its average; the dense layer only for the same classes."""
    tensors = given.network.state_dict()
    if not same_head:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("fc.")}
    with torch.no_grad():
        for network in (state.network, *([state.average.network] if state.average else [])):
            missing, unexpected = network.load_state_dict(tensors, strict=False)
            assert not unexpected
            assert same_head or set(missing) == {"fc.weight", "fc.bias"}


def opening_lines(data: Data, audit: Audit, resolved: Resolved, environment: Environment, network: ResNet) -> list[str]:
    """What was found and decided, a sentence each."""
    recipe = resolved.recipe
    steps = count(recipe.schedule.steps, "step", "steps")
    length = f"{recipe.schedule.epochs:g} epochs in {steps} of {recipe.optim.batch}, learning rate {recipe.optim.lr:g}"
    if recipe.optim.optimizer == "lbfgs":
        length = "the dense layer alone, fitted to vectors of the pictures"
    counts = ", ".join(f"{name} {len(indices):,}" for name, indices in data.splits.items())
    return [
        f"{data.spec}: {len(data.classes)} {'classes' if data.sets is None else 'labels'}; pictures: {counts}",
        *many_labels(data),
        sizes(data, audit),
        *data.notes,
        f"{resolved.arch.name}, {sum(p.numel() for p in network.parameters()):,} parameters; {resolved.preprocess}",
        f"recipe {recipe.name}: {length}, {recipe.run.precision}",
        *environment.derived,
        parameter_groups(network, recipe.optim)[1],
        f"device {environment.device}, {environment.torch_threads} threads",
        cost_line(resolved),
    ]


def many_labels(data: Data) -> list[str]:
    """How many labels the pictures have, where they may have several."""
    if data.sets is None:
        return []
    each = data.sets.sum(1)[data.labels[data.used()]]
    none = f"; {count(int((each == 0).sum()), 'picture', 'pictures')} with none" if not each.all() else ""
    return [f"{each.mean():.3g} labels for each picture{none}"]


def cost_line(resolved: Resolved) -> str:
    """What the training will cost, in words."""
    cost = training_cost(resolved.recipe, resolved.arch)
    if resolved.recipe.optim.optimizer == "lbfgs":
        return f"cost: {cost.pictures:,} pictures embedded, less those that were before"
    line = f"cost: {cost.pictures:,} pictures shown, {amount(cost.multiply_adds)} multiply-adds"
    if cost.seconds is None:
        return line
    speed = float(f"{cost.pictures / cost.seconds:.3g}")
    return (
        f"{line}; about {duration(cost.seconds)} on one such device, at {speed:,g} pictures a second: estimated from "
        "a few steps just now, without reading pictures and scoring"
    )


def sizes(data: Data, audit: Audit) -> str:
    """How large the pictures are."""
    used = data.used() if audit.whole else audit.indices
    short = np.minimum(audit.width[used], audit.height[used])
    long = np.maximum(audit.width[used], audit.height[used])
    if short.min() == long.max():
        return f"all of {short.min()}x{short.min()} pixels"
    return f"sides of {short.min()} to {long.max()} pixels, median shorter side {int(np.median(short))}"


def assumed_line(given: ModelFile | None) -> tuple[str, ...]:
    """What had to be assumed of weights that state nothing."""
    if given is None or given.classes or given.preprocess != assumed(given.network.arch):
        return ()
    return (f"the weights state no preprocessing; assumed: {given.preprocess}",)

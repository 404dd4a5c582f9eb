"""What a training costs, before it starts: pictures, multiply-adds, and time at a speed measured here and now."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F

from resnetkit.complexity import count
from resnetkit.data.loader import side_at
from resnetkit.model import Architecture, ResNet
from resnetkit.recipe import Recipe
from resnetkit.weights import place

STEPS = 3  # that are timed, after one that is not
LARGE = {"cpu": 8, "cuda": 64}  # pictures of a timed batch from 64 pixels on, where the speed no longer hangs on it
PASSES = 3  # a step is a forward pass and a backward one, which costs two
WORTH_TIMING = 1e15  # multiply-adds of a training that takes hours, beside which the seconds of timed steps are nothing


@dataclass(frozen=True)
class Cost:
    """Of one training, scores not counted. `seconds` is None where no steps were timed."""

    pictures: int
    multiply_adds: int
    seconds: float | None


def training_cost(recipe: Recipe, arch: Architecture) -> Cost:
    """The cost of a resolved recipe on one device, from a few timed steps where the training is long."""
    if recipe.optim.optimizer == "lbfgs":  # every picture once, forward
        pictures, side = int(recipe.optim.batch), recipe.data.size
        assert not isinstance(side, str)
        return Cost(pictures, work(arch, side) * pictures, None)
    pictures = recipe.schedule.steps * int(recipe.optim.batch)
    sides = shown_at(recipe)
    works = {side: PASSES * work(arch, side) * pictures * share for side, share in sides.items()}
    total = sum(works.values())
    if total < WORTH_TIMING:
        return Cost(pictures, round(total), None)
    largest, batch = max(sides), -(-int(recipe.optim.batch) // recipe.optim.accumulate)
    bf16 = recipe.run.precision == "bf16"
    seconds = picture_seconds(arch, largest, batch, device=str(recipe.run.device), bf16=bf16)
    return Cost(pictures, round(total), seconds * total / (PASSES * work(arch, largest)))


def shown_at(recipe: Recipe) -> dict[int, float]:
    """The sides of the training input, and the share of the pictures that is shown at each."""
    size, epochs = recipe.data.size, recipe.schedule.epochs
    assert not isinstance(size, str)
    assert not isinstance(epochs, str)
    shares: dict[int, float] = {}
    for epoch in range(math.ceil(epochs)):
        side = side_at(recipe.augment, epoch / epochs, size)
        shares[side] = shares.get(side, 0.0) + min(1.0, epochs - epoch) / epochs
    return shares


@cache
def work(arch: Architecture, size: int) -> int:
    """Multiply-adds of a picture, forward."""
    return count(arch, size).multiply_adds


@cache
def picture_seconds(arch: Architecture, size: int, batch: int, *, device: str = "", bf16: bool = False) -> float:
    """A picture's share of a training step on `device`, by default that of a training: the median of a few steps."""
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with torch.random.fork_rng(devices=[]):
        network = place(ResNet(arch), where).train()
    sgd = torch.optim.SGD(network.parameters(), lr=0.0, momentum=0.9, fused=True)
    batch = min(batch, LARGE[where.type]) if size >= 64 else batch
    inputs = torch.zeros(batch, arch.channels, size, size, device=where).to(memory_format=torch.channels_last)
    labels = torch.zeros(batch, dtype=torch.long, device=where)
    taken = []
    for _ in range(1 + STEPS):
        begin = time.perf_counter()
        sgd.zero_grad()
        with torch.autocast(where.type, torch.bfloat16, enabled=bf16):
            logits = network(inputs)
        torch.autograd.backward(F.cross_entropy(logits.float(), labels))
        sgd.step()
        if where.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken[1:]) / batch

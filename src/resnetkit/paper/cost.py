"""What a study would cost on this machine, estimated from measured steps of training."""

from __future__ import annotations

import statistics
import time
from functools import cache

import torch
import torch.nn.functional as F

from resnetkit.complexity import count
from resnetkit.loop import fresh
from resnetkit.model import Architecture, architecture
from resnetkit.paper.studies import SCALES, STUDIES, Budget, Run, study_runs
from resnetkit.recipe import Recipe
from resnetkit.weights import asked_architecture, place

STEPS = 3  # that are timed, after one that is not
LARGE = 8  # pictures of a timed batch from 64 pixels on, where the speed no longer hangs on it
TRAIN, TEST = 45_000, 10_000  # pictures of CIFAR-10 that are scored: once at the end, and after each epoch


def costs() -> dict[str, dict[Budget, float]]:
    """Estimated seconds of every study at every budget."""
    return {study.name: {budget: seconds(study_runs(study, budget)) for budget in SCALES} for study in STUDIES.values()}


def seconds(runs: list[Run]) -> float:
    """Estimated seconds of all these runs: a measured step of a small network, and multiply-adds."""
    first = runs[0].recipe
    small = architecture("resnet20-cifar" if network_of(first).name.endswith("-cifar") else "resnet18")
    per_work = picture_seconds(small, side(first), int(first.optim.batch)) / work(small, side(first))
    return sum(per_work * work(network_of(run.recipe), side(first)) * pictures(run.recipe) for run in runs)


def pictures(recipe: Recipe) -> float:
    """Pictures that are trained on, and a third of those that are scored: a forward pass is a third of a step."""
    trained = recipe.schedule.steps * int(recipe.optim.batch)
    return trained + (TRAIN + TEST * (2 + trained / TRAIN)) / 3


def side(recipe: Recipe) -> int:
    assert isinstance(recipe.data.size, int)
    return recipe.data.size


def network_of(recipe: Recipe) -> Architecture:
    """The network that a study's recipe trains, but for its classes."""
    return asked_architecture(recipe.model)


@cache
def work(arch: Architecture, size: int) -> int:
    """Multiply-adds of a picture, forward."""
    return count(arch, size).multiply_adds


@cache
def picture_seconds(arch: Architecture, size: int, batch: int) -> float:
    """A picture's share of a training step on the device that training would take: the median of a few steps."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = place(fresh(arch, 0), device).train()
    sgd = torch.optim.SGD(network.parameters(), lr=0.0, momentum=0.9, fused=True)
    batch = min(batch, LARGE) if size >= 64 and device.type == "cpu" else batch
    inputs = torch.zeros(batch, 3, size, size, device=device).to(memory_format=torch.channels_last)
    labels = torch.zeros(batch, dtype=torch.long, device=device)
    taken = []
    for _ in range(1 + STEPS):
        begin = time.perf_counter()
        sgd.zero_grad()
        torch.autograd.backward(F.cross_entropy(network(inputs), labels))
        sgd.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken[1:]) / batch

"""What a study would cost on this machine, estimated from measured steps of training."""

from __future__ import annotations

from resnetkit.cost import picture_seconds, work
from resnetkit.model import Architecture, architecture
from resnetkit.paper.studies import SCALES, STUDIES, Budget, Run, study_runs
from resnetkit.recipe import Recipe
from resnetkit.weights import asked_architecture

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

"""What a training says of itself while it runs. Nothing here prints; the command line does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnetkit.evaluation import Score


@dataclass(frozen=True)
class Reading:
    """So many of the pictures have been looked at before training."""

    done: int
    total: int


@dataclass(frozen=True)
class Embedding:
    """So many of the training pictures are vectors."""

    done: int
    total: int


@dataclass(frozen=True)
class Found:
    """What was found and decided, a sentence each."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class Progress:
    """After a step. `step` counts within the run, from 1 to `steps`."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    lr: float
    images_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class EpochDone:
    """A line of the log. Rates are shares; `score` is that of the split that was kept back, when it was evaluated."""

    epoch: int
    epochs: int
    step: int
    lr: float
    train_loss: float
    train_top1: float
    seconds: float
    images_per_second: float
    score: dict[str, Any] | None


@dataclass(frozen=True)
class Evaluating:
    """The final score is being taken."""

    split: str
    n: int


@dataclass(frozen=True)
class Finished:
    """The end of a run, and what `train` and `resume` return."""

    run: Path
    result: Score
    report: Path

    def _repr_html_(self) -> str:
        return self.result._repr_html_()


Event = Reading | Embedding | Found | Progress | EpochDone | Evaluating | Finished


class Stopped(Exception):  # noqa: N818 - a request that was followed, not a mistake
    """SIGINT or SIGTERM came; the step was finished and a checkpoint written."""

    def __init__(self, signum: int, run: Path, step: int) -> None:
        super().__init__(f"stopped after step {step:,}; go on with: resnet resume {run}")
        self.signum, self.run, self.step = signum, run, step

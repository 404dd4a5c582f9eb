"""What is kept of a run: one JSON file with recipe, seed, environment, curve, score and measurements.

The page is made from these files alone; they are small enough to be committed.
"""

from __future__ import annotations

import math
import os
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from resnetkit.atomic import write_json
from resnetkit.errors import UserError
from resnetkit.paper.studies import Run
from resnetkit.recipe import Recipe
from resnetkit.recipe_file import from_dict, to_dict
from resnetkit.runs import read_json, read_log, read_steps

FORMAT = 1
STARTS = "starts.json"  # signals of networks before their first step, beside the records of a budget
POINTS = 150  # of a training curve
LAST = 100  # iterations over which the final training error is taken
ABOUT = ("fingerprint", "device", "torch_threads", "versions", "machine", "derived", "notes")  # of the environment
T95 = {
    2: 12.706,
    3: 4.303,
    4: 3.182,
    5: 2.776,
    6: 2.571,
    7: 2.447,
    8: 2.365,
    9: 2.306,
    10: 2.262,
}  # by number of seeds; of more: a little wide


@dataclass(frozen=True)
class Record:
    """One run of a study. Errors are in per cent."""

    format: int
    name: str
    seed: int
    budget: str
    recipe: dict[str, Any]  # resolved
    environment: dict[str, Any]
    train_curve: list[list[float]]  # [iteration, error]: mean of the iterations since the point before
    test_curve: list[list[float]]  # [iteration, error]
    held: str  # the split of test_curve
    train_error: float | None  # mean over the last iterations, on augmented pictures; None: diverged
    result: dict[str, Any] | None  # score on the final split; None: diverged
    diverged: int | None  # the iteration at which the loss was no longer a number
    measured: dict[str, Any]
    seconds: float  # of the steps

    @property
    def test_error(self) -> float:
        """On the final split; that of guessing where the training diverged."""
        return 100.0 * (1 - float(self.result["top1"])) if self.result else self.guessing

    @property
    def final_train_error(self) -> float:
        """The training error of the last iterations; that of guessing where the training diverged."""
        return self.guessing if self.train_error is None else self.train_error

    @property
    def guessing(self) -> float:
        """The error of a guess."""
        return 100.0 * (1 - 1 / int(self.measured["classes"]))


def path_of(results: Path, run: Run) -> Path:
    """Where a run's record is."""
    return results / run.budget / f"{run.title}.json"


def make_record(run: Run, folder: Path, measured: dict[str, Any], diverged: int | None) -> Record:
    """The record of a run that has ended, from its folder."""
    recipe, environment = read_json(folder / "recipe.json"), read_json(folder / "environment.json")
    batch = recipe["optim"]["batch"]
    steps, log = read_steps(folder), read_log(folder)
    window = max(1, recipe["schedule"]["steps"] // POINTS)
    errors = [100 * (1 - correct / batch) for _, _, correct in steps]
    starts = range(0, len(errors), window)
    curve = [[min(at + window, len(errors)), round(statistics.fmean(errors[at : at + window]), 3)] for at in starts]
    scores = [(line["step"], line["score"]) for line in log if line["score"]]
    found = read_json(folder / "result.json")["result"] if diverged is None else None
    shown = ("n", "correct", "top1", "top1_interval", "nll")
    return Record(
        format=FORMAT,
        name=run.name,
        seed=run.seed,
        budget=run.budget,
        recipe=recipe,
        # Without the paths of the machine it was made on: a record travels.
        environment={key: environment[key] for key in ABOUT} | {"data": spec_name(environment["data"])},
        train_curve=curve,
        test_curve=[[step, round(100 * (1 - score["top1"]), 3)] for step, score in scores],
        held=scores[-1][1]["split"] if scores else "",
        train_error=None if diverged is not None else statistics.fmean(errors[-LAST:]),
        result=None if found is None else {key: found[key] for key in shown},
        diverged=diverged,
        measured=finite(measured),
        seconds=round(sum(line["seconds"] for line in log), 1),
    )


def finite(value: Any) -> Any:
    """JSON has no infinity: what is not finite is null there."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def spec_name(spec: str) -> str:
    """`cifar10:cifar10-q75` of cifar10:/home/me/cifar10-q75."""
    kind, colon, where = spec.partition(":")
    if colon and "/" not in kind:  # of a path that has a colon in it there is no kind
        return f"{kind}:{Path(where).name}"
    return Path(spec).name


def make_place(folder: Path) -> None:
    """Make the folder of a budget's records, before anything is run for them. Raises UserError when that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another --results") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder}: cannot be written; choose another --results")


def save(record: Record, path: Path) -> None:
    """Write a record. Raises UserError when that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(record))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another --results") from None


def load(path: Path) -> Record:
    """Read a record. Raises UserError for a damaged file or one that is none."""
    values = read_json(path)
    try:
        record = Record(**values)
    except TypeError:
        raise UserError(f"{path}: is no result of resnet paper run; take it out of the folder") from None
    if record.format != FORMAT:
        raise UserError(f"{path}: of another version of resnetkit (format {record.format}, not {FORMAT}); run it again")
    return record


def load_all(results: Path, budget: str) -> list[Record]:
    """The records of a budget, in the order of names and seeds."""
    return sorted((load(path) for path in (results / budget).glob("*-seed*.json")), key=lambda r: (r.name, r.seed))


def check_same(asked: Recipe, resolved: dict[str, Any], where: Path) -> None:
    """Raise UserError unless a recipe on disk is the asked one with its open values filled in."""
    there = to_dict(from_dict(resolved, where=str(where)))  # a key that is younger than the file has its default
    for table, values in to_dict(asked).items():
        for key, value in values.items() if isinstance(values, dict) else ():
            has = there[table][key]
            if value != "auto" and has != value and (table, key) != ("schedule", "epochs"):
                raise UserError(
                    f"{where}: was made with another recipe ({table}.{key} is {has}, this study has {value}); "
                    "move it away, or choose another --results"
                )


@dataclass(frozen=True)
class Spread:
    """A mean over seeds with its 95 % interval (Student's t); one seed has no interval."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        if self.n == 1:
            return f"{self.mean:.1f}\u00a0% (one seed)"
        return f"{self.mean:.1f}\u00a0% ({self.low:.1f} to {self.high:.1f})"


def spread(values: list[float]) -> Spread:
    """Mean and interval of one number per seed."""
    n, mean = len(values), statistics.fmean(values)
    half = T95[min(n, 10)] * statistics.stdev(values) / math.sqrt(n) if n > 1 else 0.0
    return Spread(mean, mean - half, mean + half, n)


def by_name(records: list[Record]) -> dict[str, list[Record]]:
    """The seeds of each run together."""
    return {name: [r for r in records if r.name == name] for name in dict.fromkeys(r.name for r in records)}

"""Running a study: each of its trainings, begun, resumed or already there, and what is kept of them."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnetkit.about import MODEL_FILE
from resnetkit.atomic import write_json
from resnetkit.data.audit import Audit, fingerprint
from resnetkit.data.loader import Reader, default_threads
from resnetkit.data.pictures import Data
from resnetkit.data.source import open_data
from resnetkit.data.split import load_split, split_training
from resnetkit.data.transforms import Preprocess
from resnetkit.distributed import ALONE
from resnetkit.errors import Diverged, UserError
from resnetkit.events import Event
from resnetkit.looking import look_at
from resnetkit.loop import fresh
from resnetkit.model import architecture
from resnetkit.paper import records
from resnetkit.paper.measuring import BATCH, batch_of, measure
from resnetkit.paper.records import Record, make_record
from resnetkit.paper.signals import signals
from resnetkit.paper.studies import SCALES, Budget, Run, Study, study_runs
from resnetkit.runs import read_json
from resnetkit.training import resuming, training

DIVERGED = "diverged.json"  # in the folder of a run whose loss was no longer a number: no need to train it again


@dataclass(frozen=True)
class Begun:
    """A run is looked at; `number` counts from 1."""

    run: Run
    number: int
    of: int


@dataclass(frozen=True)
class Done:
    """A run's record is written, or was there before."""

    run: Run
    record: Record
    fresh: bool


def run_study(
    study: Study, data: str, *, budget: Budget, seeds: int | None, results: Path, folder: Path
) -> Iterator[Begun | Event | Done]:
    """Train what is missing of a study, from where it was stopped, and write its records.

    folder   where the run folders go: FOLDER/BUDGET/NAME-seedN
    results  where the records go: RESULTS/BUDGET/NAME-seedN.json
    Raises UserError when the pictures do not fit, or what lies in either place is of another recipe or other pictures,
    or the records cannot be written.
    """
    runs = study_runs(study, budget, seeds)
    found = open_data(data)
    whole, audit = yield from look_at(found, runs[0].recipe, ALONE)
    check_pictures(study, budget, whole, audit)
    mark = fingerprint(whole, audit)
    for run in runs:  # before an hour is spent
        check_present(run, results, folder, mark)
    records.make_place(results / budget)
    if study.name == "initialisation" and not (results / budget / records.STARTS).exists():
        write_starts(whole, audit, runs[0], results)
    for number, run in enumerate(runs, start=1):
        yield Begun(run, number, len(runs))
        place, path = folder / budget / run.title, records.path_of(results, run)
        if path.exists():
            yield Done(run, records.load(path), fresh=False)
            continue
        diverged = yield from trained(run, data, place)
        divided = load_split(whole, place / "split.csv") if (place / "split.csv").exists() else whole
        measured: dict[str, Any] = {"classes": len(whole.classes), "jpeg": is_jpeg(whole)}
        if diverged is None and study.pictures == "cifar":
            measured |= measure(place, divided, run.seed, read_json(place / "recipe.json")["run"]["device"])
        record = make_record(run, place, measured, diverged)
        records.save(record, path)
        yield Done(run, record, fresh=True)


def trained(run: Run, data: str, place: Path) -> Generator[Event, None, int | None]:
    """Train a run to its end, or go on with it. Returns the step at which it diverged, None where it did not."""
    if (place / DIVERGED).exists():
        return int(read_json(place / DIVERGED)["step"])
    try:
        if not place.exists():
            yield from training(data, recipe=run.recipe, out=place)
        elif not ((place / MODEL_FILE).exists() and (place / "result.json").exists()):
            yield from resuming(place)
    except Diverged as error:
        step = error.step or run.recipe.schedule.steps
        write_json(place / DIVERGED, {"step": step})
        return step
    return None


def is_jpeg(data: Data) -> bool:
    """Whether the pictures are JPEG files, which for CIFAR-10 means that they are not the original pixels."""
    return data.pictures.name(0).lower().endswith((".jpg", ".jpeg"))


def check_pictures(study: Study, budget: Budget, data: Data, audit: Audit) -> None:
    """Raise UserError, before anything is trained, unless the study can be made on these pictures."""
    used = data.used()
    width, height = audit.width[used], audit.height[used]
    has = f"{data.spec} has {len(data.classes)} classes and pictures of {width.min()}x{height.min()}"
    if (width.max(), height.max()) != (width.min(), height.min()):
        has += f" to {width.max()}x{height.max()}"
    if study.pictures == "cifar":
        sides = (32,) if budget == "full" else (28, 32)
        fits = all(side in sides for side in {*width.tolist(), *height.tolist()})
        if len(data.classes) != 10 or not fits or "test" not in data.splits:
            wanted = "ten classes of pictures of 32x32, in train and test"
            raise UserError(f"{has}; the study {study.name} is of {wanted}: give cifar10:DIR")
        return
    size = study.recipes(budget)["imagenet-plain18"].data.size
    assert isinstance(size, int)
    if min(width.min(), height.min()) < size or "val" not in data.splits:
        raise UserError(
            f"{has}, in {', '.join(data.splits)}; the study {study.name} wants at least {size} pixels a side at the "
            f"budget {budget}, in train/ and val/"
        )


def check_present(run: Run, results: Path, folder: Path, mark: str) -> None:
    """Raise UserError when a record or a run folder of this name is of another recipe or other pictures."""
    path, place = records.path_of(results, run), folder / run.budget / run.title
    found = []
    if path.exists():
        record = records.load(path)
        found.append((path, record.recipe, record.environment))
    if place.exists():
        found.append((place, read_json(place / "recipe.json"), read_json(place / "environment.json")))
    for where, recipe, environment in found:
        records.check_same(run.recipe, recipe, where)
        if environment["fingerprint"] != mark:
            raise UserError(f"{where}: was made from other pictures; move it away, or choose another --results")


def write_starts(data: Data, audit: Audit, run: Run, results: Path) -> None:
    """Variance and gradients at the first step of 56-layer networks, with and without normalisation, for each start."""
    split = split_training(data, run.recipe.data.val, 0, audit.digest)
    size = SCALES[run.budget].size
    reader = Reader(split, Preprocess(size, "shorter", size, "bilinear", 3, "RGB", (0.5,) * 3, (0.25,) * 3, False),
                    threads=default_threads())  # fmt: skip
    train = split.splits["train"]
    pictures, labels = batch_of(reader, train[:: max(1, len(train) // BATCH)][:BATCH], "cpu")
    found = []
    for name in ("plain56-cifar", "resnet56-cifar"):
        for norm in ("batch", "none"):
            for init in ("he", "xavier", "small"):
                arch = architecture(name, classes=len(data.classes), norm=norm, init=init)
                about = {"arch": name, "norm": norm, "init": init, "size": size, "seed": 0}
                found.append(about | signals(fresh(arch, 0), pictures, labels))
    write_json(results / run.budget / records.STARTS, records.finite(found))

"""k-fold cross-validation: k trainings, each without one part of the pictures, and every picture scored by the model
that did not learn from it. The folds are runs like any other, in one folder.

What comes out is a score that uses every picture, and k models. No model of all pictures is made: nothing would be left
to score it on.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from resnetkit import runs
from resnetkit.about import MODEL_FILE
from resnetkit.atomic import write_json, write_text
from resnetkit.data.audit import Audit, fingerprint
from resnetkit.data.excluded import EXCLUDED, as_csv, names_of_run, read_names, without_names
from resnetkit.data.loader import Reader, default_threads
from resnetkit.data.pictures import Data, check_trainable
from resnetkit.data.source import open_data
from resnetkit.data.split import load_split, split_folds
from resnetkit.distributed import ALONE
from resnetkit.errors import UserError
from resnetkit.evaluation import Result, describe_protocol, judge, wilson
from resnetkit.events import Event, Stopped
from resnetkit.looking import look_at
from resnetkit.protocol import Answers, Member, ask
from resnetkit.recipe import Recipe
from resnetkit.recipe_file import from_dict, to_dict
from resnetkit.rendezvous import torchrun
from resnetkit.runs import read_json
from resnetkit.shipped import shipped
from resnetkit.starting import starting_weights
from resnetkit.trackers import check_trackers
from resnetkit.training import Wish, begun, resuming
from resnetkit.weights import ModelFile, open_model, place

PLAN, POOLED, TABLE = "folding.json", "folds.json", "out_of_fold.csv"
HEADER = ["path", "label", "answer", "confidence", "fold"]


@dataclass(frozen=True)
class FoldBegun:
    """A fold is turned to; `number` counts from 1. `there`: it was finished before."""

    number: int
    of: int
    there: bool


@dataclass(frozen=True)
class FoldScore:
    """Of the `n` pictures of a fold, its model, in the folder `run`, got `correct` right; 95 % Wilson interval."""

    run: str
    n: int
    correct: int
    top1: float
    top1_interval: tuple[float, float]


@dataclass(frozen=True)
class CrossValidated:
    """What `cross_validate` returns. `result` is of all pictures, each answered by the model that did not see it.

    Its interval takes the pictures for independent tests of one model. The k models are not quite that: their training
    pictures overlap, and no variance can be had without bias from one division (Bengio and Grandvalet 2004).
    """

    run: Path
    data: str
    result: Result
    folds: tuple[FoldScore, ...]

    @property
    def spread(self) -> dict[str, float]:
        """Lowest, highest and sample standard deviation of the folds' accuracies, as shares."""
        rates = [fold.top1 for fold in self.folds]
        return {"lowest": min(rates), "highest": max(rates), "standard_deviation": float(np.std(rates, ddof=1))}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        each = [asdict(fold) for fold in self.folds]
        return {"data": self.data, "result": self.result.to_dict(), "folds": each, "spread": self.spread}

    def __str__(self) -> str:
        return str(self.result)


def cross_validate(
    data: str | Path,
    folds: int = 5,
    *,
    recipe: Recipe | None = None,
    weights: str | Path | None = None,
    out: str | Path | None = None,
    track: Sequence[str] = (),
    exclude: Sequence[str | Path] = (),
) -> CrossValidated:
    """Train `folds` times, each time without one part of the pictures, and score each picture once.

    The other arguments are those of `train`; `data` must be undivided, and the recipe's data.val has no say. Raises
    UserError for wrong input, Stopped after SIGINT or SIGTERM; `resnet resume` goes on then.
    """
    events = cross_validating(data, folds, recipe=recipe, weights=weights, out=out, track=track, exclude=exclude)
    (end,) = deque(events, maxlen=1)
    assert isinstance(end, CrossValidated)
    return end


def cross_validating(
    data: str | Path,
    folds: int,
    *,
    recipe: Recipe | None = None,
    weights: str | Path | None = None,
    out: str | Path | None = None,
    track: Sequence[str] = (),
    exclude: Sequence[str | Path] = (),
) -> Iterator[FoldBegun | Event | CrossValidated]:
    """`cross_validate` as a stream of events."""
    check_alone()
    if folds < 2:
        raise UserError(f"folds={folds}: must be 2 or more, one to check with and the others to learn from")
    recipe = recipe or shipped("finetune" if weights else "small")
    recipe = from_dict(to_dict(replace(recipe, data=replace(recipe.data, val=1 / folds))), where="the recipe")
    check_trackers(track)
    folder = runs.new_folder(out, str(data))
    begin_from = os.path.abspath(weights) if weights else None  # noqa: PTH100 - resumed from another place, it is this
    wish = Wish(data, None, recipe, begin_from, tuple(track), read_names(exclude))
    given, whole, audit = yield from looked_at(wish)
    parts = split_folds(whole, folds, recipe.run.seed, audit.digest)
    for part in parts:
        check_trainable(part)
    plan = {
        "folds": folds,
        "data": wish.places[0],
        "fingerprint": fingerprint(whole, audit),
        "weights": wish.weights,
        "track": list(wish.track),
        "excluded": len(wish.exclude),
        "torch_threads": torch.get_num_threads(),
        "recipe": to_dict(recipe),
    }
    try:
        write_plan(folder, plan, wish.exclude)
        yield from trained(folder, wish, given, whole, parts, audit)
    except BaseException:
        if folder.is_dir() and not (folder / "fold-1").exists():  # nothing to go on with
            shutil.rmtree(folder, ignore_errors=True)
        raise


def is_folded(run: str | Path) -> bool:
    """Whether a folder is one of `cross_validate`."""
    return (Path(run) / PLAN).exists()


def cross_resuming(run: str | Path) -> Iterator[FoldBegun | Event | CrossValidated]:
    """Go on with a cross-validation that was stopped or killed: its finished folds stay as they are."""
    check_alone()
    folder = Path(run)
    plan = read_json(folder / PLAN)
    exclude = names_of_run(folder, plan["excluded"])
    recipe = from_dict(plan["recipe"], where=str(folder / PLAN))
    wish = Wish(plan["data"], None, recipe, plan["weights"], tuple(plan["track"]), exclude)
    given, whole, audit = yield from looked_at(wish)
    if fingerprint(whole, audit) != plan["fingerprint"]:
        raise UserError(
            f"{plan['data']}: the pictures are not those that {folder} was begun with; bring those back, or begin anew"
        )
    parts = split_folds(whole, plan["folds"], recipe.run.seed, audit.digest)
    torch.set_num_threads(plan["torch_threads"])  # another number would sum floats in another order
    yield from trained(folder, wish, given, whole, parts, audit)


def check_alone() -> None:
    """Raise UserError under torchrun."""
    if torchrun() is not None:
        raise UserError("--folds: one process trains the folds, one after the other; start it without torchrun")


def looked_at(wish: Wish) -> Generator[Event, None, tuple[ModelFile | None, Data, Audit]]:
    """The weights to begin from, and the pictures, read once for all folds.

    Raises UserError for weights that were learnt from these very pictures: no fold would be new to them.
    """
    given = starting_weights(wish.weights, wish.recipe) if wish.weights else None
    found = without_names(open_data(wish.data), wish.exclude)
    check_trainable(found)
    whole, audit = yield from look_at(found, wish.recipe, ALONE)
    check_trainable(whole)
    learnt = given.provenance.get("data", {}).get("fingerprint") if given is not None else None
    if learnt == fingerprint(whole, audit):
        raise UserError(
            f"--from {wish.weights}: was trained on these very pictures, so none of them would be new to a fold's "
            "model; begin from other weights"
        )
    return given, whole, audit


def write_plan(folder: Path, plan: dict[str, Any], exclude: tuple[str, ...]) -> None:
    """The folder, with all that going on takes. Raises UserError."""
    try:
        folder.mkdir(parents=True)
        if exclude:
            write_text(folder / EXCLUDED, as_csv((name, "") for name in exclude))
        write_json(folder / PLAN, plan)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another --out or make room") from None


def trained(
    folder: Path, wish: Wish, given: ModelFile | None, whole: Data, parts: list[Data], audit: Audit
) -> Iterator[FoldBegun | Event | CrossValidated]:
    """Train what is missing, then score every picture."""
    with runs.locked(folder):
        for number, part in enumerate(parts, start=1):
            run = folder / f"fold-{number}"
            there = runs.is_finished(run)
            yield FoldBegun(number, len(parts), there)
            try:
                if not run.exists():
                    yield from begun(run, wish, given, part, audit, ALONE, divided=True)
                elif not there:
                    yield from resuming(run)
            except Stopped as stopped:
                raise Stopped(stopped.signum, folder, stopped.step) from None
        yield pooled(folder, whole, len(parts))


def pooled(folder: Path, whole: Data, folds: int) -> CrossValidated:
    """Ask each fold's model for the pictures it did not see, and write folds.json and out_of_fold.csv.

    Raises UserError unless the folds that lie there have each picture once.
    """
    answers, scores, words = [], [], []
    how = f"{folds} folds, each scored by the model of the others"
    for number in range(1, folds + 1):
        run = folder / f"fold-{number}"
        own = load_split(whole, run / "split.csv")
        model = open_model(run / MODEL_FILE)
        network = place(model.network, torch.device(str(runs.read_recipe(run).run.device)))
        reader = Reader(own, model.preprocess, threads=default_threads())
        given = ask([Member(network, reader, temperature=model.about.temperature)], own.splits["val"])
        right = int((given.table.argmax(1) == whole.labels[given.indices]).sum())
        n = len(given.indices)
        answers.append(given)
        scores.append(FoldScore(run.name, n, right, right / n, wilson(right, n)))
        words.append(describe_protocol(whole, how, model.preprocess))
    seen = np.sort(np.concatenate([[*each.indices, *each.bad] for each in answers]))
    if not np.array_equal(seen, whole.used()):
        raise UserError(f"{folder}: its folds do not have each picture once; one of them was replaced, so begin anew")
    together = Answers(
        np.concatenate([each.indices for each in answers]),
        np.concatenate([each.table for each in answers]),
        {index: reason for each in answers for index, reason in each.bad.items()},
    )
    measured = " (fold-1; each has its own mean and deviation)" if len(set(words)) > 1 else ""
    result = judge(whole, together, words[0] + measured)
    end = CrossValidated(folder, whole.spec, result, tuple(scores))
    fold = np.repeat(np.arange(1, folds + 1), [len(each.indices) for each in answers])
    with runs.resumable(folder):
        write_text(folder / TABLE, table(whole, together, fold.tolist()))
        write_json(folder / POOLED, end.to_dict())
    return end


def table(data: Data, answers: Answers, fold: list[int]) -> str:
    """out_of_fold.csv: a line for each picture, in the order of their names' bytes; confidence is in [0, 1]."""
    rows = []
    for index, row, number in zip(answers.indices.tolist(), answers.table, fold, strict=True):
        best = int(row.argmax())
        named = data.pictures.name(index), data.classes[data.labels[index]], data.classes[best]
        rows.append((*named, round(float(row[best]), 6), number))
    file = io.StringIO(newline="")
    lines = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    lines.writerow(HEADER)
    rows.sort(key=lambda row: os.fsencode(row[0]))
    lines.writerows(rows)
    return file.getvalue()

"""The verbs `train` and `resume`, and the same as streams of events (`training`, `resuming`).

The final weights are the last ones (or their average, with EMA), never the ones with the best score, so the final
score is that of pictures which decided nothing.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from resnetkit import checkpoint, runs
from resnetkit.about import MODEL_FILE
from resnetkit.atomic import write_json
from resnetkit.data.audit import (
    Audit,
    Record,
    audit_pictures,
    fingerprint,
    from_records,
    require_good,
    sampled,
    without_bad,
)
from resnetkit.data.joined import with_validation
from resnetkit.data.loader import Reader, default_threads
from resnetkit.data.pictures import Data, check_trainable
from resnetkit.data.problems import problems
from resnetkit.data.source import absolute, open_data
from resnetkit.data.split import load_split, split_training
from resnetkit.data.transforms import Preprocess
from resnetkit.errors import UserError
from resnetkit.evaluation import Result, choose_split, describe_protocol, score
from resnetkit.events import Evaluating, Event, Finished, Found, Reading, Stopped
from resnetkit.loop import Loop, State, determinism
from resnetkit.recipe import Recipe
from resnetkit.recipe_file import from_dict, to_dict
from resnetkit.report import write_report
from resnetkit.resolve import Resolved, resolve
from resnetkit.shipped import shipped
from resnetkit.starting import assumed_line, fill, opening_lines, starting_weights
from resnetkit.trackers import check_trackers
from resnetkit.tracking import keep, tracked
from resnetkit.weights import ModelFile, read_architecture, save_model


def train(
    data: str | Path,
    *,
    val: str | Path | None = None,
    recipe: Recipe | None = None,
    weights: str | Path | None = None,
    out: str | Path | None = None,
    track: Sequence[str] = (),
) -> Finished:
    """Train a classifier on labelled pictures and measure it.

    data     a folder, a table, or `fashion-mnist:DIR` and the like; see `open_data`
    val      pictures to check with, of the same classes, where `data` has none; as `data`
    recipe   None: "small", or "finetune" with weights
    weights  a model file, a run folder, or a state dict of torchvision's names to begin from
    out      the run folder, which must not exist; None: the next free runs/NAME-N
    track    who is told while it runs: "tensorboard", "mlflow", "wandb"; see `tracking`
    Raises UserError for wrong input, Stopped after SIGINT or SIGTERM.
    """
    return last(training(data, val=val, recipe=recipe, weights=weights, out=out, track=track))


def resume(run: str | Path) -> Finished:
    """Go on with a run that was stopped or killed, to the same bits as if it had not been."""
    return last(resuming(run))


def last(events: Iterator[Event]) -> Finished:
    """Run to the end, dropping the events on the way."""
    (end,) = deque(events, maxlen=1)
    assert isinstance(end, Finished)
    return end


def training(
    data: str | Path,
    *,
    val: str | Path | None = None,
    recipe: Recipe | None = None,
    weights: str | Path | None = None,
    out: str | Path | None = None,
    track: Sequence[str] = (),
) -> Iterator[Event]:
    """`train` as a stream of events."""
    recipe = recipe or shipped("finetune" if weights else "small")
    recipe = from_dict(to_dict(recipe), where="the recipe")
    check_trackers(track)
    folder = runs.new_folder(out, str(data))
    given = starting_weights(weights, recipe) if weights else None
    found = open_both(data, val)
    check_trainable(found)
    whole, audit = yield from look_at(found, recipe)
    check_trainable(whole)
    split = split_training(whole, recipe.data.val, recipe.run.seed, audit.digest)
    resolved = resolve(recipe, split, audit, given)
    environment = runs.this_environment(
        absolute(data),
        fingerprint(whole, audit),
        str(weights) if weights else None,
        torch.device(str(resolved.recipe.run.device)),
        derived=(*resolved.rules, *assumed_line(given)),
        notes=split.notes,
        val=absolute(val) if val is not None else None,
    )
    with determinism(resolved.recipe):
        loop = make_loop(folder, resolved, split, audit)
        if given is not None:
            fill(loop.state, given, same_head=given.classes == split.classes)
        with runs.creating(folder) as part:
            divided = set(split.splits) != set(found.splits)
            runs.write_beginning(part, resolved.recipe, environment, split, divided=divided)
            keep(part, track)
            loop.begin(part)
        yield Found(tuple(opening_lines(split, audit, resolved, environment, loop.state.network)))
        with runs.locked(folder):
            yield from tracked(run_to_end(loop, audit), folder, loop.recipe, loop.state.step)


def resuming(run: str | Path) -> Iterator[Event]:
    """`resume` as a stream of events."""
    folder = Path(run)
    recipe, environment = runs.read_recipe(folder), runs.read_environment(folder)
    with runs.locked(folder):
        runs.sweep(folder)
        whole, audit = yield from look_at(open_both(environment.data, environment.val), recipe)
        if fingerprint(whole, audit) != environment.fingerprint:
            raise UserError(
                f"{environment.data}: the pictures are not those that {folder} was begun with; bring those back, "
                "or begin a new run with resnet train"
            )
        table = folder / "split.csv"
        split = replace(load_split(whole, table) if table.exists() else whole, notes=environment.notes)
        tensors, meta, notes = checkpoint.load_latest(folder)
        torch.set_num_threads(environment.torch_threads)  # another number would sum floats in another order
        preprocess = Preprocess.from_dict(meta["preprocess"])
        resolved = Resolved(recipe, read_architecture(meta["architecture"]), preprocess, environment.derived)
        with determinism(recipe):
            loop = make_loop(folder, resolved, split, audit)
            loop.restore(tensors, meta)
            changed = runs.decoder_changed(environment)
            yield Found((*notes, *changed, f"resuming {folder} at step {loop.state.step:,} of {loop.steps:,}"))
            yield from tracked(run_to_end(loop, audit), folder, loop.recipe, loop.state.step)


def open_both(data: str | Path, val: str | Path | None) -> Data:
    """The pictures to learn from, and those to check with where they come from another place."""
    return open_data(data) if val is None else with_validation(open_data(data), open_data(val))


def look_at(data: Data, recipe: Recipe) -> Generator[Reading, None, tuple[Data, Audit]]:
    """Read every picture once, unless an index knows them or there are too many. Returns the data without bad pictures,
    or raises UserError that names them."""
    known = from_records(data)
    if known is not None:
        return data, known
    chosen = sampled(data)
    total = len(data.used() if chosen is None else chosen)

    def counted(records: Iterator[Record]) -> Generator[Reading, None, list[Record]]:
        seen = []
        for record in records:
            seen.append(record)
            if len(seen) % 500 == 0 or len(seen) == total:
                yield Reading(len(seen), total)
        return seen

    channels = recipe.data.channels if isinstance(recipe.data.channels, int) else 3
    records = audit_pictures(data, indices=chosen, exif=recipe.data.exif, channels=channels, threads=default_threads())
    audit = replace(Audit.collect(len(data), (yield from counted(records))), whole=chosen is None)
    if recipe.data.bad == "stop":
        require_good(data, audit)
    return without_bad(data, audit), audit


def make_loop(folder: Path, resolved: Resolved, data: Data, audit: Audit) -> Loop:
    """The loop at its first step, with the decoded pictures kept in memory when all of them fit."""
    run, preprocess = resolved.recipe.run, resolved.preprocess
    used = data.used() if audit.whole else audit.indices
    seen = int((audit.width[used].astype("int64") * audit.height[used]).sum())
    pixels = seen * len(data.used()) // max(1, len(used))
    keep = pixels * preprocess.channels <= run.cache_mb * 2**20
    reader = Reader(data, preprocess, threads=int(run.threads), keep=keep)
    return Loop(folder, resolved, data, reader, State(resolved))


def run_to_end(loop: Loop, audit: Audit) -> Iterator[Event]:
    """Train what is left, take the final score, and write model, result and report."""
    yield from loop.run()
    if loop.saved_step < loop.steps:
        loop.save()
    data, state, preprocess = loop.data, loop.state, loop.resolved.preprocess
    split = choose_split(data, None)
    yield Evaluating(split, len(data.splits[split]))
    protocol = describe_protocol(data, split, preprocess)
    try:
        result = score(state.evaluated, loop.reader, data.splits[split], protocol=protocol)
    except KeyboardInterrupt:
        raise Stopped(signal.SIGINT, loop.folder, state.step) from None
    environment = runs.read_environment(loop.folder)
    metrics = {name: value for name, value in result.to_dict().items() if name not in ("mistakes", "confusion")}
    provenance = {
        "recipe": to_dict(loop.recipe),
        "data": {"spec": data.spec, "fingerprint": environment.fingerprint, "split": split},
        "versions": environment.versions,
        "device": environment.device,
        "weights": environment.weights,
    }
    model = ModelFile(state.evaluated, data.classes, preprocess, metrics, provenance)
    with runs.resumable(loop.folder):
        save_model(model, loop.folder / MODEL_FILE)
        report = finish(loop.folder, data, audit, split, result)
    yield Finished(loop.folder, result, report)


def finish(folder: Path, data: Data, audit: Audit, split: str, result: Result) -> Path:
    """Write result.json and the report; returns the report's path."""
    found = [vars(problem) for problem in problems(data, audit)]
    about = {"result": result.to_dict(), "split": split, "problems": found}
    write_json(folder / "result.json", about)
    return write_report(folder, data)

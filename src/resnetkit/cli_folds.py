"""`resnet train --folds` and what resumes it, as a person sees them. Starts without torch and numpy."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from resnetkit.errors import UserError
from resnetkit.shell import complain, emit
from resnetkit.terminal import Watcher, live_area, new_table, percent, say, screen, show_bad, shown

if TYPE_CHECKING:
    from rich.console import Console

    from resnetkit.crossvalidation import CrossValidated
    from resnetkit.recipe import Recipe


def train_folds(
    data: str,
    val: str | None,
    folds: int,
    recipe: Recipe,
    settings: tuple[str, ...],
    weights: str | None,
    out: str | None,
    track: tuple[str, ...],
    exclude: tuple[str, ...],
    as_json: bool,
) -> int:
    """`resnet train DATA --folds K`; the exit code. Raises UserError for options that contradict it."""
    if val is not None:
        raise UserError(
            f"--val {val}: with --folds each part of {data} is what the others are checked with; leave out one of them"
        )
    if any(setting.partition("=")[0].strip() == "data.val" for setting in settings):
        raise UserError(f"--set data.val: with --folds {folds} a part is one in {folds}; leave out one of them")
    from resnetkit.crossvalidation import cross_validating

    events = cross_validating(data, folds, recipe=recipe, weights=weights, out=out, track=track, exclude=exclude)
    return watch(events, as_json)


def resume_folds(run: str, as_json: bool) -> int:
    """`resnet resume RUN` of a folder of folds; the exit code."""
    from resnetkit.crossvalidation import cross_resuming

    return watch(cross_resuming(run), as_json)


def watch(events: Iterator[Any], as_json: bool) -> int:
    """Show the trainings until they end or are stopped; the exit code."""
    from resnetkit.events import Stopped

    console = screen(stderr=as_json)
    try:
        end = follow(events, console)
    except Stopped as stopped:
        again = f"resnet resume {shlex.quote(str(stopped.run))}"
        complain(f"stopped after step {stopped.step:,} of a fold; go on with: {again}")
        return 128 + stopped.signum
    if as_json:
        emit({"run": str(end.run), **end.to_dict()})
    else:
        show(console, end)
    return 0


def follow(events: Iterator[Any], console: Console) -> CrossValidated:
    """Show what the folds say, each line that all of them say once, and return the end."""
    from resnetkit.crossvalidation import CrossValidated, FoldBegun
    from resnetkit.events import Finished, Found

    told: set[str] = set()
    end: CrossValidated | None = None
    with live_area(console) as area:
        watcher = Watcher(console, area)
        for event in events:
            if isinstance(event, FoldBegun):
                watcher.live("")
                watcher = Watcher(console, area)
                there = ": finished before" if event.there else ""
                say(console, (f"fold {event.number} of {event.of}", "bold"), there)
            elif isinstance(event, Found):
                watcher.show(Found(tuple(line for line in event.lines if line not in told)))
                told.update(event.lines)
            elif isinstance(event, Finished):
                watcher.live("")
                say(console, "kept back: top-1 ", (str(event.result), "bold"))
            elif isinstance(event, CrossValidated):
                end = event
            else:
                watcher.show(event)
    assert end is not None, "a cross-validation ends with its score or raises"
    return end


def show(console: Console, end: CrossValidated) -> None:
    """The folds side by side, the score of all pictures, where things are, and what there is not."""
    table = new_table(fold=("fold", "left"), correct=("correct", "right"), top1=("top-1", "right"))
    table.add_column("95 % interval", justify="right", no_wrap=True)
    for fold in end.folds:
        low, high = fold.top1_interval
        interval = f"{100 * low:.1f} to {100 * high:.1f}"
        table.add_row(shown(fold.run), f"{fold.correct:,} of {fold.n:,}", percent(fold.top1, 1), interval)
    console.print()
    console.print(table)
    console.print()
    spread, k = end.spread, len(end.folds)
    say(console, "out of fold: top-1 ", (str(end.result), "bold"))
    say(console, f"balanced accuracy {percent(end.result.balanced_accuracy)}")
    say(
        console,
        f"folds: {percent(spread['lowest'], 1)} to {percent(spread['highest'], 1)}, standard deviation "
        f"{100 * spread['standard_deviation']:.1f} points",
    )
    show_bad(console, end.result.bad)
    say(console, f"every picture: {end.run / 'out_of_fold.csv'}")
    say(console, f"models: {k}, in {end.run / 'fold-1'} to {end.run / f'fold-{k}'}; none has learnt from all pictures")
    again = ["resnet", "train", end.data, "--set", "data.val=0"]
    say(console, f"for one that has, train as you did, without --folds: {shlex.join(again)} …")
    say(console, "what it reports is of pictures it learnt from; the score out of fold is the one to quote")

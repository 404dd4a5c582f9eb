"""A training told to TensorBoard, MLflow or Weights & Biases while it runs.

A tracker is told from a thread of its own, so none that is slow makes a step wait, and one that fails is told no more
and the training goes on. The run folder keeps who is told and by which name the run is known there, so a resumed run
goes on in the same place; none of them gets a step twice.

Steps have `loss`, `lr` and `images_per_second`, epochs `epoch`, `train/…` and `val/…`, the end `final/…`.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

from resnetkit.atomic import write_json
from resnetkit.errors import UserError
from resnetkit.events import EpochDone, Event, Finished, Found, Progress
from resnetkit.recipe import Recipe
from resnetkit.recipe_file import to_dict
from resnetkit.trackers import MANY, TRACKERS, Row, Story, check_trackers, place_of

KEPT = "tracking.json"
END_SECONDS, STOP_SECONDS = 600.0, 10.0  # that a tracker has for what it was not yet told, at the end and when stopped


# Who is told


def keep(folder: Path, names: Sequence[str]) -> None:
    """Write down who is told of this run, for `tracked`. Raises OSError."""
    if names:
        write_json(folder / KEPT, {"name": secrets.token_hex(4), "trackers": list(dict.fromkeys(names)), "done": []})


def tracked(events: Iterator[Event], folder: Path, recipe: Recipe, begun: int) -> Iterator[Event]:
    """The events of a training in its folder from step `begun` on, told on the way to those that `keep` wrote down.

    Where the trackers put what they are told comes first, as an event; so does, once, what one failed of. They know
    nothing of what is done already.
    """
    kept = read_kept(folder)
    flat = dict(flattened(to_dict(recipe)))
    tellers = [
        Teller(name, Story(folder, kept["name"], flat, begun)) for name in kept["trackers"] if name not in kept["done"]
    ]
    if tellers:
        yield Found(tuple(f"tracker {teller.tracker}: {place_of(teller.tracker, folder)}" for teller in tellers))
    try:
        for teller in tellers:
            teller.thread.start()
        for event in events:
            for teller in tellers:
                teller.tell(event)
            if isinstance(event, Finished):
                end(tellers, END_SECONDS)
                done = [teller.tracker for teller in tellers if teller.failure is None]
                if done:
                    with suppress(OSError):
                        write_json(folder / KEPT, {**kept, "done": [*kept["done"], *done]})
            failures = tuple(failure for teller in tellers if (failure := teller.new_failure()))
            if failures:
                yield Found(failures)
            yield event
    finally:
        end(tellers, STOP_SECONDS)


def read_kept(folder: Path) -> dict[str, Any]:
    """What `keep` wrote down. A file that cannot be read stops no training."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads((folder / KEPT).read_text())
        known = [name for name in kept["trackers"] if name in TRACKERS]
        return {"name": str(kept["name"]), "trackers": known, "done": list(kept["done"])}
    return {"name": "", "trackers": [], "done": []}


def flattened(tables: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """`optim.lr` and its value, and so on."""
    for key, value in tables.items():
        if isinstance(value, dict):
            yield from flattened(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


# Telling


class Teller:
    """A tracker in its thread."""

    def __init__(self, tracker: str, story: Story) -> None:
        self.tracker, self.story = tracker, story
        self.waiting: Queue[Row | None] = Queue()
        self.step = story.begun
        self.failure: str | None = None
        self.said = False
        self.thread = Thread(target=self.run, name=f"tracker {tracker}", daemon=True)

    def run(self) -> None:
        try:
            check_trackers([self.tracker])
            TRACKERS[self.tracker](self.story, batches(self.waiting))
        except UserError as error:
            self.failure = f"{error}; the training goes on without it"
        except Exception as error:  # whatever a library of others raises, the training goes on
            self.fail(str(error).strip() or type(error).__name__)

    def fail(self, reason: str) -> None:
        """Keep the first line of what a library may tell in many."""
        self.failure = f"tracker {self.tracker}: {reason.splitlines()[0][:200]}; the training goes on without it"

    def tell(self, event: Event) -> None:
        """Put it with what waits, unless nobody listens any more."""
        row = row_of(event, self.step)
        if row is not None and self.thread.is_alive():
            self.step = row[0]
            self.waiting.put(row)
        if isinstance(event, Finished):
            self.story.finished = event

    def new_failure(self) -> str | None:
        """What went wrong, when it was not yet asked for."""
        said, self.said = self.said, self.failure is not None
        return None if said else self.failure


def end(tellers: Sequence[Teller], seconds: float) -> None:
    """Let all end with what they were told, for so long at most."""
    until = time.monotonic() + seconds
    alive = [teller for teller in tellers if teller.thread.is_alive()]
    for teller in alive:
        teller.waiting.put(None)
    for teller in alive:
        teller.thread.join(max(0.0, until - time.monotonic()))
        if teller.thread.is_alive():
            teller.fail(f"was not done {seconds:.0f} s after the end")


def batches(waiting: Queue[Row | None]) -> Iterator[list[Row]]:
    """What waits, all at once, until there is no more to come."""
    while True:
        found = [waiting.get()]
        while len(found) < MANY and not waiting.empty():
            found.append(waiting.get())
        yield [row for row in found if row is not None]
        if None in found:
            return


def row_of(event: Event, step: int) -> Row | None:
    """The numbers of an event; `step` is the last one of the training so far."""
    if isinstance(event, Progress):
        return event.step, {"loss": event.loss, "lr": event.lr, "images_per_second": event.images_per_second}
    if isinstance(event, EpochDone):
        told = {"epoch": float(event.epoch), "train/loss": event.train_loss, "train/top1": event.train_top1}
        score = event.score or {}
        names = ("top1", "mean_average_precision", "nll")
        return event.step, told | {f"{score['split']}/{name}": score[name] for name in names if name in score}
    if isinstance(event, Finished):
        values = event.result.to_dict().items()
        return step, {f"final/{name}": float(value) for name, value in values if isinstance(value, int | float)}
    return None

"""The verb `report`: a run's page with what only asking its model again can tell; another run beside it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from resnetkit.abstaining import abstaining, at_shares
from resnetkit.album import Album
from resnetkit.atomic import write_text
from resnetkit.comparison import Comparison, compare
from resnetkit.data.loader import Reader, default_threads
from resnetkit.data.pictures import Data
from resnetkit.data.traits import scan
from resnetkit.errors import UserError
from resnetkit.evaluation import Result, as_trained, choose_split, describe_protocol, judge
from resnetkit.peers.card import model_card
from resnetkit.protocol import Answers, Member, check_numbers, outputs, tempered
from resnetkit.reliability import reliability
from resnetkit.report import Deeper, write_report
from resnetkit.report_charts import coverage_curve, reliability_diagram
from resnetkit.runs import read_environment, read_json, read_recipe
from resnetkit.slices import slices
from resnetkit.weights import ModelFile, open_model, place

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Report:
    """Where the page is, the card if one was asked for, and what stands on the page."""

    page: Path
    card: Path | None
    deeper: Deeper


@dataclass(frozen=True, eq=False)
class Seen:
    """What a model makes of the pictures `indices`: probabilities (n, classes) and vectors (n, d), and what is bad."""

    indices: NDArray[np.int64]
    table: NDArray[np.float64]
    vectors: NDArray[np.float32]
    bad: dict[int, str]


def report(
    run: str | Path,
    *,
    against: str | Path | None = None,
    out: str | Path | None = None,
    card: str | Path | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Report:
    """Write a finished run's page anew, with what its model says of each picture that was kept back.

    against   another run or model file, asked on the same pictures
    out       where the page goes; None: report.html in the run, in place of the one there
    card      where a model card (Markdown) goes as well
    progress  is called with what is being done, how much is done, and how much there is
    Raises UserError for what is no finished run, for pictures that are gone, and for pictures that the other one was
    trained on.
    """
    folder, tell = Path(run), progress or (lambda *_: None)
    found = read_json(folder / "result.json")["result"]
    for taken in (out, card):
        free(taken)
    model = open_model(folder)
    recorded = Result.from_dict(found)
    data = as_trained(folder, None).relabelled(model.classes)
    split = choose_split(data, None)
    seen = ask_again(model, data, data.select(split), device, lambda *done: tell("asking the model", *done))
    protocol = describe_protocol(data, split, model.preprocess, members=[member(model, data)])
    result = judge(data, Answers(seen.indices, seen.table, seen.bad), protocol)
    other = None if against is None else compared(folder, against, device, tell)
    deeper = look_closer(data, seen, result, other, notes_on(recorded, result), tell, read_recipe(folder).data.exif)
    where = Path(card) if card is not None else None
    try:
        page = write_report(folder, data, deeper, Path(out) if out is not None else None)
        if where is not None:
            write_text(where, model_card(model))
    except OSError as error:
        raise UserError(f"{error.filename or out or folder}: cannot be written ({error.strerror})") from None
    return Report(page, where, deeper)


def free(path: str | Path | None) -> None:
    """Raise UserError for a file that is there already, or whose folder is not."""
    if path is None:
        return
    if os.path.lexists(path):
        raise UserError(f"{path}: exists already; choose another name")
    if not Path(path).parent.is_dir():
        raise UserError(f"{path}: there is no folder {Path(path).parent}; make it first, or choose another place")


def member(model: ModelFile, data: Data) -> Member:
    reader = Reader(data, model.preprocess, threads=default_threads())
    return Member(model.network, reader, None, model.about.temperature)


def ask_again(
    model: ModelFile, data: Data, indices: NDArray[np.int64], device: str, tell: Callable[[int, int], None]
) -> Seen:
    """One pass for answers and vectors. Raises UserError where no picture can be read."""
    network = place(model.network, torch.device(device))
    width = network.fc.in_features

    def answer(x: torch.Tensor) -> torch.Tensor:
        vectors = network.embed(x)
        return torch.cat([vectors, network.fc(vectors)], 1)

    parts, done = [], 0
    for part in outputs(network, Reader(data, model.preprocess, threads=default_threads()), indices, answer):
        check_numbers(part, data)
        parts.append(part)
        done += len(part.indices) + len(part.bad)
        tell(done, len(indices))
    good = [part for part in parts if len(part.indices)]
    if not good:
        raise UserError(f"{data.spec}: no picture that can be read any more")
    rows = np.concatenate([part.rows for part in good])
    return Seen(
        np.concatenate([part.indices for part in good]),
        tempered(torch.from_numpy(rows[:, width:].copy()), model.about.temperature).numpy(),
        rows[:, :width],
        {index: reason for part in parts for index, reason in part.bad.items()},
    )


def compared(run: Path, other: str | Path, device: str, tell: Progress) -> Comparison:
    """The other model, A, and the run's, B, on the pictures that the run kept back. Raises UserError."""
    environment = read_environment(run)
    return compare(
        other,
        run,
        environment.val or environment.data,
        bad="skip",
        device=device,
        progress=lambda now: tell(f"comparing, model {now.member} of 2", now.done, now.total),
    )


def notes_on(recorded: Result, now: Result) -> list[str]:
    """Where the page departs from what the run wrote down."""
    if (recorded.n, recorded.correct) == (now.n, now.correct):
        return []
    return [
        f"when the run ended, {recorded.correct:,} of {recorded.n:,} were right, and now {now.correct:,} of {now.n:,}: "
        "the pictures, the model file or the machine have changed"
    ]


def look_closer(
    data: Data,
    seen: Seen,
    result: Result,
    other: Comparison | None,
    notes: Sequence[str],
    tell: Progress,
    exif: bool,
) -> Deeper:
    """Everything on the page that follows from the answers."""
    labels = data.labels[seen.indices].astype(np.int64)
    right = seen.table.argmax(1) == labels
    rows = abstaining(seen.table.max(1), right)
    traits = scan(only(data, seen.indices), threads=default_threads(), progress=lambda *done: tell("measuring", *done))
    measured = np.isin(seen.indices, traits.indices)
    album = Album(data, seen.indices, seen.table, seen.vectors, exif=exif)
    differing = [] if other is None else album.differing(other.differing)
    strips = album.strips(result)
    typical, others = album.typical(result)
    return Deeper(
        result=result,
        charts=[reliability_diagram(reliability(seen.table, labels)), coverage_curve(rows)],
        answered=at_shares(rows),
        slices=slices(
            right[measured],
            labels[measured],
            [name for name, kept in zip(album.names, measured, strict=True) if kept],
            traits.values,
        ),
        strips=strips,
        typical=typical,
        others=others,
        against=None if other is None else (other, differing),
        notes=notes,
    )


def only(data: Data, indices: NDArray[np.int64]) -> Data:
    """The data with these pictures alone in use."""
    return replace(data, splits={"all": np.sort(indices)})

"""The verb `label-next`: which of the pictures without labels are worth labelling, and why each of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnetkit.about import model_path
from resnetkit.data.loader import Reader, default_threads, order
from resnetkit.data.pictures import Data, count, listing
from resnetkit.embedding import unlabelled
from resnetkit.errors import UserError
from resnetkit.evaluation import as_trained
from resnetkit.kcentre import Choice, choose, unsureness
from resnetkit.protocol import check_numbers, outputs, tempered
from resnetkit.weights import ModelFile, open_model, place

MOST = 5_000  # labelled pictures that the others are compared with; of more, these are drawn
TORN = 0.2  # margin below which an answer is torn between two classes
Progress = Callable[[str, int, int], None]  # what is done, how far, of how many


@dataclass(frozen=True)
class Pick:
    """A picture to label.

    distance  from the nearest labelled picture or the nearest pick before, between vectors of length 1; None where
              there is none
    nearest   the name of that picture
    """

    path: str
    answer: str
    probability: float
    second: str
    second_probability: float
    distance: float | None
    nearest: str | None
    why: str


@dataclass(frozen=True)
class Labelling:
    """Pictures worth labelling, the most worthwhile first, out of `n`; `labelled` ones were known."""

    picks: tuple[Pick, ...]
    n: int
    labelled: int
    bad: dict[str, str]  # unreadable pictures: path to reason
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, under the same names."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Seen:
    """Pictures by name, with vectors float32 (n, d) and probabilities float64 (n, classes)."""

    names: list[str]
    vectors: NDArray[np.float32]
    table: NDArray[np.float64]
    bad: dict[str, str]


def label_next(
    model: str | os.PathLike[str] | ModelFile,
    paths: str | Path | Iterable[str | Path],
    *,
    n: int = 100,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Labelling:
    """Choose n pictures to label: unsure answers, far from what is labelled and from one another; see `kcentre`.

    model   a model that lies in its run also knows which pictures are labelled
    paths   pictures without labels: files as they are given, folders walked
    Raises UserError: no such path, no picture that can be read, a model of one class.
    """
    if n < 1:
        raise UserError(f"n={n}: must be 1 or more")
    opened = model if isinstance(model, ModelFile) else open_model(os.fspath(model))
    if len(opened.classes) < 2:
        raise UserError("a model of one class is never unsure; take one of two classes or more")
    reader = unlabelled(opened, [paths] if isinstance(paths, str | Path) else paths)
    place(opened.network, torch.device(device))
    seen = look(opened, reader, reader.data.select("all"), "looking at the pictures", progress)
    if not seen.names:
        why = f": {listing([f'{name} ({reason})' for name, reason in seen.bad.items()])}" if seen.bad else ""
        raise UserError(f"no picture to choose from{why}")
    known, notes = labelled_pictures(model, opened, progress)
    chosen = choose(seen.vectors, unsureness(seen.table), known.vectors, n)
    if len(seen.names) < n:
        notes.append(f"there are {count(len(seen.names), 'picture', 'pictures')} only, so all of them are chosen")
    picks = tuple(pick(opened, seen, known, choice) for choice in chosen)
    return Labelling(picks, len(seen.names), len(known.names), seen.bad, tuple(notes))


def look(opened: ModelFile, reader: Reader, indices: NDArray[np.int64], what: str, progress: Progress | None) -> Seen:
    """Vectors and answers of pictures, in one pass."""
    network, name, width = opened.network, reader.data.pictures.name, opened.network.fc.in_features

    def both(x: Tensor) -> Tensor:
        vectors = network.embed(x)
        return torch.cat([vectors, network.fc(vectors)], 1)

    names: list[str] = []
    bad: dict[str, str] = {}
    rows = [np.empty((0, width + len(opened.classes)), np.float32)]
    for part in outputs(network, reader, indices, both):
        check_numbers(part, reader.data)
        bad |= {name(index): reason for index, reason in sorted(part.bad.items())}
        names += [name(index) for index in part.indices.tolist()]
        if len(part.indices):
            rows.append(part.rows)
        if progress is not None:
            progress(what, len(names) + len(bad), len(indices))
    table = np.concatenate(rows)
    probabilities = tempered(torch.from_numpy(table[:, width:].copy()), opened.about.temperature).numpy()
    return Seen(names, table[:, :width], probabilities, bad)


def labelled_pictures(
    model: str | os.PathLike[str] | ModelFile, opened: ModelFile, progress: Progress | None
) -> tuple[Seen, list[str]]:
    """The pictures that the model's run was trained on, as far as they are at hand; and what to know of it."""
    width = opened.network.fc.in_features
    none = Seen([], np.empty((0, width), np.float32), np.empty((0, len(opened.classes))), {})
    folder = None if isinstance(model, ModelFile) else model_path(os.fspath(model)).parent
    if folder is None or not (folder / "environment.json").exists():
        return none, ["the model lies in no run folder, so it is not known which pictures are labelled already"]
    try:
        data: Data = as_trained(folder, None)
    except UserError as error:
        return none, [f"the labelled pictures are not at hand, so none is compared with them: {error}"]
    indices = next(data.splits[name] for name in ("train", "all") if name in data.splits)
    notes = []
    if len(indices) > MOST:
        notes.append(f"compared with {MOST:,} of the {len(indices):,} labelled pictures, drawn at random")
        indices = np.sort(indices[order(0, 0, len(indices))[:MOST]])
    reader = Reader(data, opened.preprocess, threads=default_threads())
    return look(opened, reader, indices, "looking at the labelled ones", progress), notes


def pick(opened: ModelFile, seen: Seen, known: Seen, choice: Choice) -> Pick:
    """A choice in names and words."""
    row = seen.table[choice.row]
    first, second = np.argsort(-row, kind="stable")[:2].tolist()
    answer, other = opened.classes[first], opened.classes[second]
    if row[first] - row[second] < TORN:
        why = f"torn between {answer} ({100 * row[first]:.0f} %) and {other} ({100 * row[second]:.0f} %)"
    else:
        why = f"{answer} at {100 * row[first]:.0f} %, then {other} at {100 * row[second]:.0f} %"
    nearest = None
    if choice.nearest is not None:
        labelled = choice.nearest >= 0
        nearest = known.names[choice.nearest] if labelled else seen.names[-1 - choice.nearest]
        why += f"; at {choice.distance:.2f} from the nearest {'labelled picture' if labelled else 'one above'}"
    distance = None if nearest is None else choice.distance
    return Pick(seen.names[choice.row], answer, float(row[first]), other, float(row[second]), distance, nearest, why)

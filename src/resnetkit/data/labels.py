"""Other labels for pictures than their folders': ReaL, corrected tables, folders called by output number; and the
classes of one model by the order of another.

ReaL is real.json of "Are we done with ImageNet?" (arXiv 2006.07159): a list in which entry i holds the output numbers,
in the order of sorted wnids, that are right for ILSVRC2012_val_{i + 1:08}. An empty entry leaves its picture out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from resnetkit.data.devkit import picture_numbers
from resnetkit.data.pictures import Data, Indices, count, plain_name
from resnetkit.data.table import read_rows, written
from resnetkit.errors import UserError, nearest

NUMBERS = "numbers"


@dataclass(frozen=True)
class Labels:
    """What counts as right: for each picture's index the outputs, one or more. Pictures without any are left out."""

    accepted: Mapping[int, tuple[int, ...]]
    words: str

    def __str__(self) -> str:
        return self.words


def read_labels(given: str | Path, data: Data, indices: Indices, classes: Sequence[str]) -> Labels:
    """The labels of the pictures `indices`, as outputs of a model with these `classes`.

    given   "numbers": the pictures' class folders are called by output number, as in ImageNet-V2
            a .json file: ReaL
            a .csv or .tsv file with the columns path and label, a class or an output number; a path with several lines
            has several labels
    Raises UserError: a file of another kind or that does not fit the pictures, a number that no output has.
    """
    text = os.fspath(given)
    suffix = Path(text).suffix.lower()
    if text == NUMBERS:
        accepted = by_number(data, indices, len(classes))
    elif suffix == ".json":
        accepted = real(Path(text), data, indices, len(classes))
    elif suffix in (".csv", ".tsv"):
        accepted = tabled(Path(text), data, indices, classes)
    else:
        raise UserError(f"labels {text}: neither a .json, .csv or .tsv file nor the word {NUMBERS}")
    if not accepted:
        raise UserError(f"labels {text}: no label for any of the {len(indices):,} pictures of {data.spec}; take others")
    words = f"labels {'folders by output number' if text == NUMBERS else text}"
    without = len(indices) - len(accepted)
    left = f"; left out {count(without, 'picture', 'pictures')} without one" if without else ""
    return Labels(accepted, words + left)


def by_number(data: Data, indices: Indices, outputs: int) -> dict[int, tuple[int, ...]]:
    """Class folders 0, 1, …, 999. Sorted as strings, as folders are, "10" would be output 2."""
    numbers = [output(name, outputs, f"{data.spec}, folder {name}") for name in data.classes]
    return {i: (numbers[data.labels[i]],) for i in indices.tolist() if data.labels[i] >= 0}


def output(text: str, outputs: int, where: str) -> int:
    """An output number as it is written. Raises UserError."""
    if not (text.isascii() and text.isdecimal()) or int(text) >= outputs:
        raise UserError(f"{where}: {text!r} is no output number of the model, which has 0 to {outputs - 1:,}")
    return int(text)


def real(path: Path, data: Data, indices: Indices, outputs: int) -> dict[int, tuple[int, ...]]:
    """The labels of ReaL, by the number in a picture's name."""
    try:
        entries: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"labels {path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"labels {path}: no JSON ({error}); is it cut short?") from None
    if not isinstance(entries, list) or not all(isinstance(entry, list) for entry in entries):
        raise UserError(
            f"labels {path}: must be a list with a list of output numbers for each picture, as real.json is"
        )
    accepted = {}
    numbers = picture_numbers([data.pictures.name(i) for i in indices.tolist()], data.spec)
    for index, number in zip(indices.tolist(), numbers, strict=True):
        if not 1 <= number <= len(entries):
            raise UserError(f"labels {path}: {len(entries):,} entries, and none for {data.pictures.name(index)}")
        entry = entries[number - 1]
        for label in entry:
            if type(label) is not int or not 0 <= label < outputs:
                raise UserError(
                    f"labels {path}: entry {number - 1}: {label!r} is no output number of the model, which has 0 to "
                    f"{outputs - 1:,}"
                )
        if entry:
            accepted[index] = tuple(entry)
    return accepted


def tabled(path: Path, data: Data, indices: Indices, classes: Sequence[str]) -> dict[int, tuple[int, ...]]:
    """The labels of a table; a path is the picture's name in the data."""
    if not path.is_file():
        raise UserError(f"labels {path}: no such file")
    chosen = {data.pictures.name(i): i for i in indices.tolist()}
    place = {plain_name(name): number for number, name in enumerate(classes)}
    every: set[str] = set()
    accepted: dict[int, tuple[int, ...]] = {}
    for row in read_rows(path, f"labels {path}"):
        if row.path not in chosen:
            every = every or {data.pictures.name(i) for i in range(len(data))}
            if row.path not in every:
                raise UserError(
                    f"labels {path}, line {row.line}: {row.path} is none of the pictures of {data.spec}"
                    f"{nearest(row.path, chosen) if len(chosen) < 1000 else ''}"
                )
            continue  # a picture of another split
        where = f"labels {path}, line {row.line}"
        name = written(row.label)
        label = place[name] if name in place else output(name, len(classes), where)
        index = chosen[row.path]
        accepted[index] = (*accepted.get(index, ()), label)
    return accepted


def unmatched(data: Data, classes: Sequence[str]) -> Data:
    """The same pictures without their own labels, for a model with these `classes`."""
    return replace(data, labels=np.full(len(data), -1, dtype=np.int64), classes=tuple(classes))


def same_classes(first: tuple[str, ...], other: tuple[str, ...], model: str) -> Indices | None:
    """Where each class of the first model is among another's outputs; None: at its own place.

    model   how the other is called in an error
    Raises UserError when the classes differ, and when only the order does but a name stands for two of them.
    """
    wanted, given = ([plain_name(name) for name in names] for names in (first, other))
    if wanted == given:
        return None
    different = sorted(set(wanted) ^ set(given))
    if different:
        lacks, has = ("it", "the first model") if different[0] in wanted else ("the first model", "it")
        raise UserError(
            f"ensemble: {model} has other classes: {lacks} lacks {different[0]!r}, which {has} has; take models of the "
            "same classes"
        )
    position = {name: index for index, name in enumerate(given)}
    if len(position) < len(given) or len(wanted) != len(given):
        twice = next(name for name in wanted if max(wanted.count(name), given.count(name)) > 1)
        raise UserError(
            f"ensemble: {model} has its classes in another order, and two are called {twice!r}; take models of one "
            "order"
        )
    return np.array([position[name] for name in wanted], dtype=np.int64)

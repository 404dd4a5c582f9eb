"""A table of pictures: CSV or TSV with the columns `path`, `label` or `labels` and, if wanted, `split`."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resnetkit.data.pictures import (
    SEPARATOR,
    SPLITS,
    Data,
    Files,
    count,
    label_table,
    listing,
    plain_name,
    set_table,
)
from resnetkit.errors import UserError, nearest


@dataclass(frozen=True)
class Row:
    """One picture: its path relative to the table's folder (or absolute), and the line it stands on.

    label   a class, or a set of classes where the table has the column `labels`
    """

    path: str
    label: str | frozenset[str]
    split: str
    line: int


def load_table(path: Path, spec: str | None = None) -> Data:
    """Read the table, and look whether its files are there; relative paths are relative to the table's folder.

    UTF-8, with or without byte order mark; other columns are ignored. Order: by the bytes of the path. In a column
    `labels` stand several for each picture, `cat|sofa`, or none.
    Raises UserError that names the lines: a column missing, an empty cell, a path with two labels or in two splits, an
    unknown split, a file that is not there, no rows, no label in any row.
    """
    spec = spec or os.fspath(path)
    if not path.exists():
        raise UserError(f"{spec}: no such file; check the path")
    rows, repeated = unique(spec, list(read_rows(path, spec)))
    if not rows:
        raise UserError(f"{spec}: no rows below the header; add a line path,label for each picture")
    check_files(path.parent, rows, spec)
    rows.sort(key=lambda row: os.fsencode(row.path))
    sets = None
    many = [row.label for row in rows if isinstance(row.label, frozenset)]
    if many:
        labels, classes, sets = set_table(many)
        if not classes:
            raise UserError(f"{spec}: the column 'labels' is empty in every row; write labels such as cat|sofa")
    else:
        labels, classes = label_table([str(row.label) for row in rows])
    of_split = np.array([row.split for row in rows])
    splits = {name: np.flatnonzero(of_split == name) for name in ("all", "train", "val", "test") if name in of_split}
    notes = (f"{repeated:,} of the rows repeat an earlier one and count once",) if repeated else ()
    files = Files(path.parent, [row.path for row in rows])
    return Data(spec, files, labels, classes, splits, notes, sets=sets)


def read_rows(path: Path, spec: str) -> Iterator[Row]:
    """The rows as written, one by one checked."""
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            lines = csv.reader(file, delimiter=delimiter, strict=True)
            header = [name.strip().lower() for name in next(lines, [])]
            place = {name: header.index(name) for name in find_columns(header, spec)}
            for cells in lines:
                if any(cell.strip() for cell in cells):
                    yield make_row(cells, place, f"{spec}, line {lines.line_num}", lines.line_num)
    except (OSError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{spec}: cannot be read as a table ({reason}); save it as UTF-8 text") from error


def find_columns(header: list[str], spec: str) -> list[str]:
    """`path`, `label` or `labels` and, when it is there, `split`."""
    if {"label", "labels"} <= set(header):
        raise UserError(
            f"{spec}: has the columns 'label' and 'labels'; keep the first where a picture has one label, the other "
            "where it may have several"
        )
    label = "labels" if "labels" in header else "label"
    for name in ("path", label):
        if name not in header:
            text = "".join(header)
            found = ", ".join(repr(column) for column in header) or "none"
            hint = nearest(name, header).replace("did you mean", "is it called")
            if "\0" in text or "\udcff" in text or "\udcfe" in text:
                hint = "; it looks like UTF-16, save it as UTF-8"
            elif len(header) == 1 and any(mark in text for mark in ",;\t"):
                hint = "; separate columns by commas in a .csv and by tabs in a .tsv"
            raise UserError(f"{spec}: no column {name!r} in the first line (columns: {found}){hint}")
    return [name for name in ("path", label, "split") if name in header]


def make_row(cells: list[str], place: dict[str, int], where: str, line: int) -> Row:
    """A row from its cells; a short line's missing cells are empty."""
    values = {name: cells[at] if at < len(cells) else "" for name, at in place.items()}
    for name in ("path", "label"):
        if name in place and not values[name].strip():
            raise UserError(f"{where}: {name} is empty; fill it in or take the line out")
    split = values.get("split", "all").strip().lower()
    if "split" in place and split not in SPLITS:
        raise UserError(f"{where}: split {split!r}: choose from train, val, test{nearest(split, SPLITS)}")
    label = labels_in(values["labels"]) if "labels" in place else plain_name(values["label"].strip())
    return Row(os.path.normpath(values["path"]), label, SPLITS.get(split, "all"), line)


def labels_in(cell: str) -> frozenset[str]:
    """The labels of a cell such as `cat | sofa`; none in an empty one."""
    return frozenset(plain_name(part.strip()) for part in cell.split(SEPARATOR) if part.strip())


def written(label: str | frozenset[str]) -> str:
    """A label as it could stand in a table."""
    return label if isinstance(label, str) else SEPARATOR.join(sorted(label))


def unique(spec: str, rows: list[Row]) -> tuple[list[Row], int]:
    """Each path once, and how many rows were repetitions. Raises UserError where two rows of a path disagree."""
    first: dict[str, Row] = {}
    for row in rows:
        other = first.setdefault(row.path, row)
        for what, one, two in (("labels", other.label, row.label), ("splits", other.split, row.split)):
            if one != two:
                first_said, then_said = written(one), written(two)
                raise UserError(
                    f"{spec}: {row.path} has two {what}, {first_said!r} on line {other.line} and "
                    f"{then_said!r} on line {row.line}; keep one of the lines"
                )
    return list(first.values()), len(rows) - len(first)


def check_files(folder: Path, rows: list[Row], spec: str) -> None:
    """Raise UserError that names the files that are not there, with their lines."""
    missing = [f"{row.path} (line {row.line})" for row in rows if not os.path.isfile(os.path.join(folder, row.path))]  # noqa: PTH113, PTH118
    if missing:
        raise UserError(
            f"{spec}: {count(len(missing), 'file is', 'files are')} not there: {listing(missing)}; a relative path "
            f"starts at the table's folder, {folder.absolute()}"
        )

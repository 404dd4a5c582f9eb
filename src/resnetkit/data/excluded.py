"""Pictures that are left out by name, as `resnet check` writes them down or a person does."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from resnetkit.data.pictures import Data, count, listing
from resnetkit.errors import UserError, nearest

COLUMN = "path"
EXCLUDED = "excluded.csv"  # in a run folder


def read_names(files: Iterable[str | Path]) -> tuple[str, ...]:
    """The names in these files, each once: the column `path` of a .csv or .tsv file, the lines of a .txt file.

    Raises UserError for a file that cannot be read, of another kind, or without that column.
    """
    return tuple(dict.fromkeys(name for file in files for name in names_in(Path(file))))


def names_in(path: Path) -> list[str]:
    """The names in one file, as they stand there."""
    kind = path.suffix.lower()
    if kind not in (".csv", ".tsv", ".txt"):
        raise UserError(f"{path}: names to leave out stand in a .csv, .tsv or .txt file; give one of these")
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            if kind == ".txt":
                return [line for line in file.read().splitlines() if line.strip()]
            table = csv.reader(file, delimiter="\t" if kind == ".tsv" else ",", strict=True)
            header = [name.strip().lower() for name in next(table, [])]
            if COLUMN not in header:
                raise UserError(f"{path}: no column {COLUMN!r} in the first line{nearest(COLUMN, header)}")
            at = header.index(COLUMN)
            return [cells[at] for cells in table if len(cells) > at and cells[at].strip()]
    except (OSError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: cannot be read ({reason}); check the path") from None


def without_names(data: Data, names: Sequence[str]) -> Data:
    """The same pictures with those of these names in no split; a note says how many there are.

    Raises UserError that names what is none of the pictures.
    """
    if not names:
        return data
    wanted = set(names)
    place = {name: i for i in range(len(data)) if (name := data.pictures.name(i)) in wanted}
    missing = [name for name in names if name not in place]
    if missing:
        raise UserError(
            f"{data.spec}: {count(len(missing), 'name', 'names')} to leave out {'is' if len(missing) == 1 else 'are'} "
            f"none of its pictures: {listing(missing)}; names are relative to {data.spec}, as resnet check writes them"
        )
    out = np.array(sorted(place.values()), np.int64)
    splits = {split: indices[~np.isin(indices, out)] for split, indices in data.splits.items()}
    return replace(
        data, splits=splits, notes=(*data.notes, f"left out by name: {count(len(out), 'picture', 'pictures')}")
    )


def as_csv(rows: Iterable[tuple[str, str]]) -> str:
    """The columns path and reason, quoted so that any name comes back."""
    file = io.StringIO(newline="")
    table = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
    table.writerow([COLUMN, "reason"])
    table.writerows(rows)
    return file.getvalue()


def names_of_run(folder: Path, excluded: int) -> tuple[str, ...]:
    """The names that a run left out, of which its environment says how many there are.

    Raises UserError when its excluded.csv is not the one it was begun with.
    """
    names = read_names([folder / EXCLUDED]) if excluded else ()
    if len(names) != excluded:
        raise UserError(f"{folder / EXCLUDED}: {len(names):,} names, not the {excluded:,} of the run; restore the file")
    return names

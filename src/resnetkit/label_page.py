"""The pictures to label next, in files: a CSV whose labels are to be filled in, and a page to look at them."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

from PIL import Image

from resnetkit.atomic import write_text
from resnetkit.data.decode import decode
from resnetkit.drawing import plain, render
from resnetkit.errors import BadPicture, UserError
from resnetkit.labelling import Labelling
from resnetkit.report import THUMBNAIL, data_uri
from resnetkit.version import __version__

COLUMNS = ("path", "label", "answer", "probability", "second", "second_probability", "distance", "nearest", "why")
SHOWN = 300  # pictures on the page
BYTES = 4_000_000  # of all thumbnails together, so that the page stays below 5 MB


def target(out: str | Path) -> tuple[Path, Path]:
    """The CSV and the page of `out`, which ends in .csv. Raises UserError, before any work, for what cannot be made."""
    path = Path(out)
    if path.suffix.lower() != ".csv":
        raise UserError(f"{path}: the list is a .csv file, with a page beside it; give the name that ending")
    files = path, path.with_suffix(".html")
    for file in files:
        if os.path.lexists(file):
            raise UserError(f"{file}: exists already; choose another --out")
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}; make it first, or choose another place")
    return files


def write_labelling(found: Labelling, files: tuple[Path, Path], title: str) -> None:
    """Write both files. Raises UserError where they cannot be written."""
    table, page = files
    try:
        write_text(table, as_csv(found, table.parent))
        write_text(page, plain(as_page(found, title, table.name)))
    except OSError as error:
        raise UserError(f"{table}: cannot be written ({error.strerror}); choose another place or make room") from None


def as_csv(found: Labelling, folder: Path) -> str:
    """A table that `resnet train` takes once the column label is filled in; paths are relative to its folder."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in found.picks:
        path = one.path if os.path.isabs(one.path) else os.path.relpath(one.path, folder)  # noqa: PTH117
        distance = "" if one.distance is None else f"{one.distance:.4f}"
        sure = f"{one.probability:.4f}", one.second, f"{one.second_probability:.4f}"
        writer.writerow([path, "", one.answer, *sure, distance, one.nearest or "", one.why])
    return file.getvalue()


def as_page(found: Labelling, title: str, table: str) -> str:
    """The page, with as many pictures as fit."""
    shown, size = [], 0
    for one in found.picks[:SHOWN]:
        uri = thumbnail(one.path)
        size += len(uri)
        if size > BYTES:
            break
        shown.append((one, uri))
    return render("label_next.html", found=found, title=title, table=table, shown=shown, version=__version__)


def thumbnail(path: str) -> str:
    """The picture, small, as a data URI; empty where it cannot be read any more."""
    try:
        picture = Image.fromarray(decode(Path(path).read_bytes()))
    except (OSError, BadPicture):
        return ""
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    return data_uri(picture)

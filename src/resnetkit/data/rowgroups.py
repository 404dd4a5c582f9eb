"""Pictures in Parquet files as the Hugging Face hub has them: a column of pictures, a column of labels.

`image` is a struct of `bytes` and `path`, or the bytes themselves; `label` is a class's number, named by the schema's
"huggingface" metadata where they are there, or a text. A row group is read whole, so a few are kept.
"""

from __future__ import annotations

import json
import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from resnetkit.data.pictures import Data, Labels, label_table
from resnetkit.data.shardnames import divided
from resnetkit.errors import BadPicture, UserError
from resnetkit.parquet import pyarrow

IMAGE, LABEL = ("image", "img"), ("label", "labels", "fine_label")
KEPT, KEPT_BYTES = 32, 1 << 30  # row groups in memory, twice the window of the order, and what they may take


class RowGroups:
    """Pictures in Parquet files; `starts` has the first picture of each row group."""

    def __init__(self, files: Sequence[str], column: str, spec: str) -> None:
        self.files, self.column = files, column
        self.groups: list[tuple[int, int]] = []  # file, row group in it
        self.starts = [0]
        for k, name in enumerate(files):
            about = opened(name).metadata
            for group in range(about.num_row_groups):
                self.groups.append((k, group))
                self.starts.append(self.starts[-1] + about.row_group(group).num_rows)
        if not self.starts[-1]:
            raise UserError(f"{spec}: no rows; give files with pictures in them")
        self.firsts = {k: self.starts[g] for g, (k, _) in reversed([*enumerate(self.groups)])}
        self._kept: OrderedDict[int, Future[Any]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.starts[-1]

    def name(self, i: int) -> str:
        k = self.groups[bisect_right(self.starts, i) - 1][0]
        return f"{os.path.basename(self.files[k])}/{i - self.firsts[k]}"  # noqa: PTH119

    def size(self, i: int) -> int:
        return len(self._value(i))

    def read(self, i: int) -> bytes:
        """The picture's bytes. Raises BadPicture where the row has none, UserError where the file cannot be read."""
        value = self._value(i)
        if not value:
            raise BadPicture("the row has no bytes of a picture; store the pictures in the files, not their paths")
        return value

    def _value(self, i: int) -> bytes:
        g = bisect_right(self.starts, i) - 1
        return self._group(g)[i - self.starts[g]].as_py() or b""

    def _group(self, g: int) -> Any:
        """The bytes of a row group as an arrow array; whoever comes first reads it, others wait for that one."""
        with self._lock:
            known = self._kept.get(g)
            mine = Future[Any]() if known is None else known
            self._kept[g] = mine
            self._kept.move_to_end(g)
            while len(self._kept) > 1 and (len(self._kept) > KEPT or self._bytes() > KEPT_BYTES):
                self._kept.popitem(last=False)
        if known is None:
            try:
                mine.set_result(self._read_group(g))
            except BaseException as error:
                with self._lock:
                    self._kept.pop(g, None)
                mine.set_exception(error)
        return mine.result()

    def _bytes(self) -> int:
        done = (kept for kept in self._kept.values() if kept.done() and kept.exception() is None)
        return sum(kept.result().nbytes for kept in done)

    def _read_group(self, g: int) -> Any:
        k, group = self.groups[g]
        file = opened(self.files[k])
        struct = any(name.startswith(f"{self.column}.") for name in leaves(file))
        try:
            table = file.read_row_group(group, columns=[f"{self.column}.bytes" if struct else self.column])
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.files[k]}: row group {group} cannot be read ({error}); fetch the file anew"
            ) from None
        column = table.column(0).combine_chunks()
        return column.field("bytes") if struct else column


def opened(name: str) -> Any:
    """A Parquet file. Raises UserError: none, damaged, not there."""
    parquet = pyarrow("pyarrow.parquet", instead=".tar")
    try:
        return parquet.ParquetFile(name)
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: cannot be read as a Parquet file ({error}); fetch it anew") from None


def leaves(file: Any) -> list[str]:
    """The paths of the columns as they are stored: "image.bytes", "label"."""
    return [file.metadata.schema.column(c).path for c in range(file.metadata.num_columns)]


def load_parquet(files: Sequence[str], spec: str) -> Data:
    """The rows of Parquet files as labelled pictures. Raises UserError: no column of either kind, a row without label.

    Order: file by file as given, in each the order of its rows.
    """
    schema = opened(files[0]).schema_arrow
    image, label = (find(schema.names, words, files[0]) for words in (IMAGE, LABEL))
    pictures = RowGroups(files, image, spec)
    values: list[Any] = []
    for name in files:
        if {image, label} - set(opened(name).schema_arrow.names):
            raise UserError(f"{name}: of another data set than {files[0]}: it lacks the column {image} or {label}")
        values += opened(name).read(columns=[label]).column(label).to_pylist()
    missing = next((i for i, value in enumerate(values) if value is None or value == -1), None)
    if missing is not None:
        raise UserError(f"{spec}: {pictures.name(missing)}: a row without a label; take such files out")
    labels, classes = labelled(values, class_names(schema, label), files[0])
    firsts = np.array([*(pictures.firsts.get(k, len(pictures)) for k in range(len(files))), len(pictures)], np.int64)
    splits = divided(files, firsts, spec)
    return Data(spec, pictures, labels, classes, splits, shards=np.array(pictures.starts[:-1], np.int64))


def find(names: Sequence[str], words: Sequence[str], file: str) -> str:
    """The column called by one of the words."""
    found = next((word for word in words if word in names), None)
    if found is None:
        raise UserError(f"{file}: no column {' or '.join(words)} (columns: {', '.join(names) or 'none'}); rename it")
    return found


def class_names(schema: Any, label: str) -> list[str] | None:
    """The names of the classes in Hugging Face's metadata, if they are there."""
    try:
        feature = json.loads(schema.metadata[b"huggingface"])["info"]["features"][label]
        return [str(name) for name in feature["names"]]
    except (KeyError, TypeError, ValueError):
        return None


def labelled(values: list[Any], names: list[str] | None, file: str) -> tuple[Labels, tuple[str, ...]]:
    """Labels and classes: by the names in the file, else numbers in their order, else texts as folders are."""
    if not all(isinstance(value, int) for value in values):
        return label_table([str(value) for value in values])
    if names is None:
        found = sorted(set(values))
        return np.searchsorted(np.array(found), np.array(values)), tuple(map(str, found))
    if not 0 <= min(values) <= max(values) < len(names):
        raise UserError(f"{file}: label {max(values)}, and names for {len(names):,} classes; it is damaged")
    return np.array(values, np.int64), tuple(names)

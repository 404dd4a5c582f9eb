"""Pictures in Parquet files as the Hugging Face hub has them: a column of pictures, a column of labels.

`image` is a struct of `bytes` and `path`, or the bytes themselves; `label` is a class's number, named by the schema's
"huggingface" metadata where they are there, or a text. A row group is read whole, so some are kept.
"""

from __future__ import annotations

import hashlib
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np

from resnetkit.data.blobs import Blobs, LocalBlobs, short_names
from resnetkit.data.footers import Footer, footers, opened
from resnetkit.data.pictures import Data, Indices, Labels, label_table, label_type
from resnetkit.data.shardnames import divided
from resnetkit.errors import BadPicture, UserError

KEPT, KEPT_BYTES = 32, 1 << 30  # row groups in memory, twice the window of the order, and what they may take
OPEN = 64  # files whose own description is held


class RowGroups:
    """Pictures in Parquet files; `starts` has the first picture of each row group, `firsts` of each file.

    fits  whether all row groups are kept, once they were read
    """

    def __init__(self, blobs: Blobs, about: Sequence[Footer]) -> None:
        self.blobs = blobs
        self.files = short_names(blobs)
        self._fingerprint = fingerprint(self.files, about)
        self.about = [replace(footer, labels=[]) for footer in about]  # which take more memory than all else
        self.groups = [(k, g) for k, footer in enumerate(about) for g in range(len(footer.groups))]
        self.starts = [0, *accumulate(rows for footer in about for rows, *_ in footer.groups)]
        self._begins = np.array(self.starts)  # to look many up at once
        self.firsts = [0, *accumulate(sum(rows for rows, *_ in footer.groups) for footer in about)]
        self.fits = sum(size for footer in about for _, size, *_ in footer.groups) <= KEPT_BYTES
        self._kept: OrderedDict[int, Future[Any]] = OrderedDict()
        self._lock = threading.Lock()
        self._metadata = lru_cache(OPEN)(lambda k: opened(blobs, k, few=True).metadata)

    def __len__(self) -> int:
        return self.starts[-1]

    def name(self, i: int) -> str:
        k = bisect_right(self.firsts, i) - 1
        return f"{self.files[k]}/{i - self.firsts[k]}"

    def size(self, i: int) -> int:
        """The mean of the row group's, which is known without reading it."""
        k, group = self.groups[bisect_right(self.starts, i) - 1]
        rows, size, *_ = self.about[k].groups[group]
        return size // rows

    def read(self, i: int) -> bytes:
        """The picture's bytes. Raises BadPicture where the row has none, UserError where the file cannot be read."""
        g = bisect_right(self.starts, i) - 1
        value: bytes | None = self._group(g)[i - self.starts[g]].as_py()
        if not value:
            raise BadPicture("the row has no bytes of a picture; store the pictures in the files, not their paths")
        return value

    def soon(self, indices: Indices) -> None:
        """Say which pictures will be read next; see `Blobs.soon`."""
        groups = np.searchsorted(self._begins, indices, "right") - 1
        ranges = []
        for g in dict.fromkeys(groups.tolist()):
            k, group = self.groups[g]
            if g not in self._kept:
                ranges.append((k, *self.about[k].groups[group][2:]))
        if ranges or not len(indices):
            self.blobs.soon(ranges)

    def records(self) -> None:
        """As `Indexed`: nobody has looked at the pictures."""

    def fingerprint(self) -> str:
        """SHA-256, as hex, over the files' names, row groups and labels, wherever they lie."""
        return self._fingerprint

    def _group(self, g: int) -> Any:
        """The bytes of a row group as an arrow array; whoever comes first reads it, others wait for that one."""
        with self._lock:
            known = self._kept.get(g)
            mine = Future[Any]() if known is None else known
            self._kept[g] = mine
            self._kept.move_to_end(g)
            while len(self._kept) > 1 and not self.fits and (len(self._kept) > KEPT or self._bytes() > KEPT_BYTES):
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
        footer = self.about[k]
        file = opened(self.blobs, k, metadata=self._metadata(k))
        column = f"{footer.image}.bytes" if footer.struct else footer.image
        try:
            table = file.read_row_group(group, columns=[column])
        except UserError:
            raise
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.blobs.name(k)}: row group {group} cannot be read ({error}); fetch the file anew"
            ) from None
        found = table.column(0).combine_chunks()
        return found.field("bytes") if footer.struct else found


def fingerprint(names: Sequence[str], about: Sequence[Footer]) -> str:
    """As `RowGroups.fingerprint`."""
    total = hashlib.sha256()
    for name, footer in zip(names, about, strict=True):
        total.update(repr((name, footer.groups, footer.labels)).encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def load_parquet(
    names: Sequence[str], spec: str, *, blobs: Callable[[list[str]], Blobs] = LocalBlobs, far: bool = False
) -> Data:
    """The rows of Parquet files as labelled pictures.

    names  paths, or URLs that `blobs` takes
    far    the store is slow for single reads; what the files say of themselves is kept on this machine
    Order: file by file as given, in each the order of its rows. Raises UserError: no column of either kind, no rows, a
    row without label, files of different data sets, and as `footers` does.
    """
    store = blobs(list(names))
    about = footers(store, far=far)
    one = about[0]
    for name, footer in zip(names, about, strict=True):
        if (footer.image, footer.label, footer.names) != (one.image, one.label, one.names):
            raise UserError(f"{name}: of another data set than {names[0]}: it has other columns, or other classes")
    pictures = RowGroups(store, about)
    values = [label for footer in about for label in footer.labels]
    if not values:
        raise UserError(f"{spec}: no rows; give files with pictures in them")
    missing = next((i for i, value in enumerate(values) if value is None or value == -1), None)
    if missing is not None:
        raise UserError(f"{spec}: {pictures.name(missing)}: a row without a label; take such files out")
    labels, classes = labelled(values, one.names, names[0])
    splits = divided(names, np.array(pictures.firsts, np.int64), spec)
    starts = None if pictures.fits else np.array(pictures.starts[:-1], np.int64)
    return Data(spec, pictures, labels, classes, splits, shards=starts, far=far)


def labelled(values: list[Any], names: list[str] | None, file: str) -> tuple[Labels, tuple[str, ...]]:
    """Labels and classes: by the names in the file, else numbers in their order, else texts as folders are."""
    if not all(isinstance(value, int) for value in values):
        return label_table([str(value) for value in values])
    if names is None:
        found = sorted(set(values))
        places = np.searchsorted(np.array(found), np.array(values))
        return places.astype(label_type(len(found))), tuple(map(str, found))
    if not 0 <= min(values) <= max(values) < len(names):
        raise UserError(f"{file}: label {max(values)}, and names for {len(names):,} classes; it is damaged")
    return np.array(values, label_type(len(names))), tuple(names)

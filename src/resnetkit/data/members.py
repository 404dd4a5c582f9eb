"""Pictures in tars: which member of which tar each is, and its bytes. The tars stay as they are.

Of ten million pictures, 100 MB stand in memory, whatever their names: offset, length and label of each.
"""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnetkit.atomic import write_bytes
from resnetkit.data import tarindex
from resnetkit.data.blobs import Blobs, short_names
from resnetkit.data.pictures import Indices, Labels, Records, label_table, label_type, plain_name
from resnetkit.data.tarindex import BLOCK, SUFFIX, Index
from resnetkit.data.tars import Tar, ahead, find_pictures
from resnetkit.engines import cache
from resnetkit.errors import BadPicture, UserError

THREADS = 16  # tars that are looked at side by side; where they are far away, that is mostly waiting
NEAR, FAR = 4096, 8 << 20  # bytes fetched at a time to find headers: on a disk, and where each request takes long
TOGETHER = 1024  # names that are read at once


@dataclass(frozen=True)
class Opened:
    """Tars with what their indexes say. `labels` has -1 where nobody says; `others` are files that are no sample's."""

    pictures: Members
    labels: Labels
    classes: tuple[str, ...]
    others: tuple[int, str]  # how many, and one of them


class Members:
    """Pictures in tars, tar by tar in the order of the members."""

    def __init__(self, blobs: Blobs, indexes: Sequence[Index]) -> None:
        self.blobs, self.indexes = blobs, indexes
        self.starts = [0, *accumulate(index.n for index in indexes)]
        self._begins = np.array(self.starts)  # to look many up at once
        self.offsets = np.empty(self.starts[-1], np.uint32)  # in blocks of 512 bytes
        self.lengths = np.empty(self.starts[-1], np.uint32)
        self.tars = short_names(blobs)
        self._names = lru_cache(64)(self._read_names)

    def __len__(self) -> int:
        return len(self.offsets)

    def tar_of(self, i: int) -> int:
        """Which tar picture i is in."""
        return bisect_right(self.starts, i) - 1

    def name(self, i: int) -> str:
        k = self.tar_of(i)
        block, place = divmod(i - self.starts[k], TOGETHER)
        return f"{self.tars[k]}/{self._names(k, block)[place]}"

    def _read_names(self, k: int, block: int) -> list[str]:
        first = block * TOGETHER
        return self.indexes[k].names(first, min(TOGETHER, self.indexes[k].n - first))

    def size(self, i: int) -> int:
        return int(self.lengths[i])

    def read(self, i: int) -> bytes:
        """The picture's bytes. Raises UserError where the tar is another one than that of the index, BadPicture where
        the bytes are not those that `resnet shard` wrote."""
        k, start, length = self.tar_of(i), int(self.offsets[i]) * BLOCK, int(self.lengths[i])
        data = self.blobs.read(k, start - BLOCK, BLOCK + length)
        if octal(data[124:136]) != length:  # the member's header ends where its bytes begin
            raise UserError(
                f"{self.blobs.name(k)}: no header of {self.name(i)} where its index says; the index is of another "
                f"version of the tar: remove {self.indexes[k].path} to have it made anew"
            )
        data = data[BLOCK:]
        if self.indexes[k].recorded:
            wanted = self.indexes[k].column("sha256", i - self.starts[k], 1).tobytes()
            if hashlib.sha256(data).digest() != wanted:
                raise BadPicture("its SHA-256 is not that of the index, so bytes in the tar have changed; restore it")
        return data

    def soon(self, indices: Indices) -> None:
        """Say which pictures will be read next; see `Blobs.soon`."""
        tars = (np.searchsorted(self._begins, indices, "right") - 1).tolist()
        starts, lengths = self.offsets[indices].tolist(), self.lengths[indices].tolist()
        self.blobs.soon([(k, (a - 1) * BLOCK, BLOCK + n) for k, a, n in zip(tars, starts, lengths, strict=True)])

    def records(self) -> Records | None:
        """What `resnet shard` found when it looked at the pictures; None where one of the tars is another's."""
        if not all(index.recorded for index in self.indexes):
            return None
        odd: dict[int, tuple[str, ...]] = {}
        for start, index in zip(self.starts, self.indexes, strict=False):
            odd |= {start + int(place): tuple(kinds) for place, kinds in index.about["odd"].items()}

        def whole(name: str) -> NDArray[Any]:
            return np.concatenate([index.column(name) for index in self.indexes])

        width, height = whole("width").astype(np.int32), whole("height").astype(np.int32)
        grey = all(index.about["grey"] for index in self.indexes)
        return Records(whole("sha256"), width, height, odd, grey)

    def fingerprint(self) -> str:
        """SHA-256, as hex, over the tars' names, sizes and indexes, wherever they lie."""
        total = hashlib.sha256()
        for name, index in zip(self.tars, self.indexes, strict=True):
            total.update(
                "\0".join([name, str(index.about["bytes"]), *index.about["classes"]]).encode("utf-8", "surrogateescape")
            )
            for column in sorted(index.places):
                total.update(index.column(column).data)
        return total.hexdigest()


def octal(field: bytes) -> int:
    """A number of a tar header; -1 where there is none."""
    text = field.rstrip(b"\0 ").lstrip(b" ")
    return int(text, 8) if text.isdigit() and not {*b"89"} & {*text} else -1


def open_members(blobs: Blobs, again: Callable[[list[str]], Blobs] | None = None) -> Opened:
    """The pictures of tars, by the index beside each where there is one; else by one that is made now and kept.

    again   the same kind of store for other names, where indexes may lie beside tars that are no local files
    Raises UserError: a damaged tar or index, an index of another version of the tar, tars of different sets.
    """
    names = [blobs.name(k) for k in range(len(blobs))]
    beside = again([name + SUFFIX for name in names]) if again else None
    with ThreadPoolExecutor(THREADS, thread_name_prefix="index") as pool:
        indexes = list(pool.map(partial(kept, blobs, beside=beside, once={}), range(len(blobs))))
    classes, tables = joined_classes(indexes, names)
    pictures = Members(blobs, indexes)
    labels: Labels = np.empty(len(pictures), label_type(len(classes)))
    for index, table, begin, end in zip(indexes, tables, pictures.starts, pictures.starts[1:], strict=False):
        held = index.held()
        pictures.offsets[begin:end], pictures.lengths[begin:end] = held["offsets"], held["lengths"]
        labels[begin:end] = table[held["labels"]]
    others = sum(index.about.get("others", 0) for index in indexes)
    example = next((index.about["example"] for index in indexes if "example" in index.about), "")
    return Opened(pictures, labels, classes, (others, example))


def joined_classes(indexes: Sequence[Index], names: list[str]) -> tuple[tuple[str, ...], list[NDArray[np.int64]]]:
    """The classes of all tars, and for each tar its labels' places among them, with -1 at the end for none.

    Sets that `resnet shard` wrote keep the order of their classes. Others: by number where all are numbers, else by
    bytes as folders are.
    """
    once = dict.fromkeys(index.about["classes"] for index in indexes)
    every = dict.fromkeys(plain_name(label) for own in once for label in own)
    ordered = [
        (index.about["classes"], name) for index, name in zip(indexes, names, strict=True) if "set" in index.about
    ]
    if ordered:
        classes, first = ordered[0]
        for index, name in zip(indexes, names, strict=True):
            other = index.about["classes"]
            if other != classes:
                raise UserError(
                    f"{name}: of another data set than {first}: its {len(other):,} classes are not the "
                    f"{len(classes):,} there; give the shards of one set"
                )
    elif all(label.isascii() and label.isdecimal() for label in every):
        classes = tuple(sorted(every, key=lambda label: (int(label), label)))
    else:
        classes = label_table(list(every))[1]
    place = {label: number for number, label in enumerate(classes)}
    tables = {own: np.array([*(place[plain_name(label)] for label in own), -1], np.int64) for own in once}
    return classes, [tables[index.about["classes"]] for index in indexes]


def kept(blobs: Blobs, k: int, beside: Blobs | None, once: dict[str, tuple[str, ...]]) -> Index:
    """The index of one tar: that beside it, that in the cache, or one that is made now, in this order.

    once   see `tarindex.load`
    """
    name, version = blobs.name(k), blobs.version(k)
    near = None if "://" in name else Path(name + SUFFIX)
    where = name if near is None else os.path.abspath(name)  # noqa: PTH100 - keeps bytes of names
    digest = hashlib.sha256(f"{where}\0{version}".encode("utf-8", "surrogateescape")).hexdigest()
    cached = cache.folder(digest) / "tar.index"
    if near is not None:
        try:
            found = tarindex.load(near, once)
            if fits(found.about, blobs, k, version):
                return found
        except FileNotFoundError:
            pass
        except OSError as error:
            raise UserError(f"{near}: cannot be read ({error.strerror}); check its permissions") from None
    try:
        return tarindex.load(cached, once)
    except (OSError, UserError):  # not there, or damaged: it can be made again
        pass
    if beside is not None and keep(fetched(beside, k), cached):
        found = tarindex.load(cached, once)
        if fits(found.about, blobs, k, version):
            return found
    made = scan(blobs, k, version, NEAR if near else FAR)
    place = next((path for path in (near, cached) if path is not None and keep(made, path)), None)
    if place is None:
        raise UserError(
            f"{name}: its index can be kept neither beside it nor in {cached.parent}; make room, or set XDG_CACHE_HOME"
        )
    return tarindex.load(place, once)


def fits(about: dict[str, Any], blobs: Blobs, k: int, version: str) -> bool:
    """Whether an index is of this version of a tar; one that was made here may be stale, one of `resnet shard` not."""
    if "version" in about:
        return bool(about["version"] == version)
    if about["bytes"] != blobs.size(k):
        raise UserError(
            f"{blobs.name(k)}: {blobs.size(k):,} bytes, and {about['bytes']:,} in the index that resnet shard wrote "
            "beside it; restore the tar, or remove the index to have it made anew"
        )
    return True


def fetched(beside: Blobs, k: int) -> bytes | None:
    """The index that lies beside a tar in its store, if one does."""
    try:
        size = beside.size(k)
    except UserError:
        return None
    return beside.read(k, 0, size)


def keep(index: bytes | None, path: Path) -> bool:
    """Write an index; False where there is none, or no place for it."""
    if index is None:
        return False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, index)
    except OSError:
        return False
    return True


def scan(blobs: Blobs, k: int, version: str, reach: int) -> bytes:
    """The index of a tar, from its headers. Raises UserError as `tars.find_pictures` does."""
    size = blobs.size(k)
    others: list[str] = []
    tar = Tar(blobs.name(k), size, ahead(partial(blobs.read, k), size, reach))
    found = find_pictures(tar, others)
    classes = sorted({picture.label for picture in found if picture.label is not None})
    place: dict[str | None, int] = {label: number for number, label in enumerate(classes)}
    columns = {
        "offsets": np.array([picture.start // BLOCK for picture in found], np.uint32),
        "lengths": np.array([picture.length for picture in found], np.uint32),
        "labels": np.array([place.get(picture.label, -1) for picture in found], np.int32),
    }
    about = {
        "bytes": size,
        "version": version,
        "classes": classes,
        **({"others": len(others), "example": others[0]} if others else {}),
    }
    return tarindex.dump(columns, [picture.name for picture in found], about)

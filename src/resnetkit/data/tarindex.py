"""What is in a tar of pictures, as a file of its own: `x.tar.index`, so that no tar is read through twice.

A safetensors file, for pictures 0 … n - 1 in the tar's order:

    offsets    uint32 (n,)   where the picture's bytes begin, in blocks of 512 bytes
    lengths    uint32 (n,)   bytes
    labels     int32 (n,)    into the classes of the metadata; -1 where nobody says
    names      uint8 (…,)    the members' names, one after the other
    name_ends  uint32 (n,)   where in `names` each ends
    sha256     uint8 (n, 32), width, height uint32 (n,)   written by `resnet shard`, which has looked at each picture

Its metadata, one JSON object under "resnetkit", say which tar it is of. Offsets, lengths and labels stand in memory and
are checked against a SHA-256; the others are read where they are asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnetkit.errors import UserError

FORMAT = "resnetkit tar index 1"
KEY = "resnetkit"
SUFFIX = ".index"
BLOCK = 512
HELD = ("offsets", "lengths", "labels")
COLUMNS = {"offsets": "U32", "lengths": "U32", "labels": "I32", "names": "U8", "name_ends": "U32"}
RECORDED = {"sha256": "U8", "width": "U32", "height": "U32"}
TYPES: dict[str, np.dtype[Any]] = {"U8": np.dtype("u1"), "U32": np.dtype("<u4"), "I32": np.dtype("<i4")}
Column = NDArray[Any]


def dump(columns: Mapping[str, Column], names: list[str], about: dict[str, Any]) -> bytes:
    """The file's bytes, the same for the same contents.

    columns  offsets, lengths, labels and, where they are known, sha256, width, height
    about    tar, bytes, version or sha256 (of the whole tar), classes, …: plain JSON values
    """
    from safetensors.numpy import save

    encoded = [name.encode("utf-8", "surrogateescape") for name in names]
    whole = {
        **columns,
        "names": np.frombuffer(b"".join(encoded), np.uint8),
        "name_ends": np.cumsum([len(name) for name in encoded], dtype=np.uint32),
    }
    typed = {name: np.ascontiguousarray(whole[name], TYPES[kind]) for name, kind in kinds(whole).items()}
    own = {"format": FORMAT, "check": check(typed), "classes": json.dumps(about["classes"])}
    text = json.dumps({**about, **own}, sort_keys=True)
    return save(typed, metadata={KEY: text})


def kinds(columns: Mapping[str, Any]) -> dict[str, str]:
    return {name: kind for name, kind in (COLUMNS | RECORDED).items() if name in columns}


def check(columns: Mapping[str, Column]) -> str:
    """SHA-256 over what stands in memory."""
    total = hashlib.sha256()
    for name in HELD:
        total.update(np.ascontiguousarray(columns[name]).data)
    return total.hexdigest()


@dataclass(frozen=True, eq=False)
class Index:
    """An index file that was opened: how many pictures it has, where its columns lie in it, what it is of."""

    path: Path
    n: int
    places: dict[str, tuple[int, int]]  # column to first byte and bytes
    about: dict[str, Any]  # the metadata

    def column(self, name: str, first: int = 0, count: int | None = None) -> Column:
        """Rows of a column, from the file; (count, 32) of sha256. Raises UserError where they cannot be read."""
        kind = TYPES[(COLUMNS | RECORDED)[name]]
        at, length = self.places[name]
        row = 32 * kind.itemsize if name == "sha256" else kind.itemsize
        rows = length // row - first if count is None else count
        data = self._bytes(at + first * row, rows * row)
        found: Column = np.frombuffer(data, kind)
        return found.reshape(-1, 32) if name == "sha256" else found

    def names(self, first: int, count: int) -> list[str]:
        """The names of pictures first … first + count - 1."""
        before = 1 if first else 0
        ends = [0] * (1 - before) + self.column("name_ends", first - before, count + before).tolist()
        if any(b < a for a, b in pairwise(ends)) or ends[-1] > self.places["names"][1]:
            raise damaged(self.path, "its names overlap")
        data = self._bytes(self.places["names"][0] + ends[0], ends[-1] - ends[0])
        return [data[a - ends[0] : b - ends[0]].decode("utf-8", "surrogateescape") for a, b in pairwise(ends)]

    def held(self) -> dict[str, Column]:
        """Offsets, lengths and labels, checked. Raises UserError where they are damaged."""
        columns = {name: self.column(name) for name in HELD}
        try:
            if self.about["check"] != check(columns):
                raise ValueError("its SHA-256 is another")
            limits(columns, self.about)
        except (ValueError, TypeError, KeyError) as error:
            raise damaged(self.path, str(error)) from None
        return columns

    @property
    def recorded(self) -> bool:
        """Whether `resnet shard` wrote down what each picture is."""
        return set(RECORDED) <= self.places.keys()

    def _bytes(self, at: int, length: int) -> bytes:
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                data = os.pread(descriptor, length, at)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror}); begin again to make it anew") from None
        if len(data) < length:
            raise damaged(self.path, "it is cut off")
        return data


def load(path: Path, once: dict[str, tuple[str, ...]] | None = None) -> Index:
    """Open an index file; its columns are read later.

    once   classes by how they are written, which this adds to: thousands of tars then share one list
    Raises UserError when it is none, or its header is damaged; FileNotFoundError and other OSErrors.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > 1 << 28:
            raise damaged(path, "no safetensors file")
        header = file.read(length)
        size = os.fstat(file.fileno()).st_size
    try:
        described = json.loads(header)
        about = json.loads(described.pop("__metadata__")[KEY])
        places = {}
        for name, kind in kinds(described).items():
            begin, end = described[name]["data_offsets"]
            if described[name]["dtype"] != kind or not 0 <= begin <= end <= size - 8 - length:
                raise ValueError(f"column {name}")
            places[name] = (8 + length + begin, end - begin)
        n = places["offsets"][1] // 4
        rows = {name: n * (32 if name == "sha256" else 4) for name in places if name != "names"}
        if about["format"] != FORMAT or any(places[name][1] != rows[name] for name in rows):
            raise ValueError("its columns do not fit")
        once, text = {} if once is None else once, about["classes"]
        if text not in once:
            once[text] = tuple(json.loads(text))
        return Index(path, n, places, {**about, "classes": once[text]})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise damaged(path, str(error)) from None


def limits(held: Mapping[str, Column], about: dict[str, Any]) -> None:
    """Raise ValueError where a picture lies outside the tar, or a label outside the classes."""
    if not len(held["offsets"]):
        return
    ends = held["offsets"].astype(np.int64) * BLOCK + held["lengths"]
    if int(ends.max()) > int(about["bytes"]) or not int(held["offsets"].min()):
        raise ValueError("a picture outside the tar")
    if not -1 <= int(held["labels"].min()) <= int(held["labels"].max()) < len(about["classes"]):
        raise ValueError("a label that is no class")


def damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path}: damaged, or no index of a tar ({what}); remove it, and it is made anew where it can be")

"""The pool of labelled pictures that everything else reads from: `Data`, and where its pictures may lie."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from resnetkit.errors import UserError, nearest

Indices = NDArray[np.int64]
Labels = NDArray[np.signedinteger[Any]]  # as narrow as the classes allow: there may be ten million
Pixels = NDArray[np.uint8]

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}  # as written: as meant
SEPARATOR = "|"  # between the labels of a picture that has several
SHOWN = 10  # names in a message before the rest is a count


class Pictures(Protocol):
    """Where the pictures are. Reading is safe from many threads at once."""

    def __len__(self) -> int: ...

    def name(self, i: int) -> str:
        """Unique: a path, or "fashion-mnist/train/12". Bytes of a path that are not UTF-8 are surrogate escapes."""

    def size(self, i: int) -> int:
        """Bytes that `read` would give. Raises OSError."""

    def read(self, i: int) -> bytes | Pixels:
        """The file's bytes, or a decoded uint8 (H, W, C) array that must not be changed. Raises OSError."""


@dataclass(frozen=True, eq=False)
class Records:
    """What was found out about n pictures when they were written: `data.audit.Audit` without reading them again.

    digest  uint8 (n, 32), SHA-256 of each picture's bytes; width, height int32 (n,), as shown
    odd     index to what is unusual; all_grey: every picture is grey, by its header
    """

    digest: NDArray[np.uint8]
    width: NDArray[np.int32]
    height: NDArray[np.int32]
    odd: Mapping[int, tuple[str, ...]]
    all_grey: bool


@runtime_checkable
class Indexed(Protocol):
    """Pictures with an index that says more of them than their names."""

    def records(self) -> Records | None:
        """What is known of every picture; None where of one it is not."""

    def fingerprint(self) -> str:
        """SHA-256, as hex, over names, labels and sizes, and contents where the index knows them."""


@runtime_checkable
class Foretold(Protocol):
    """Pictures that come faster when somebody says beforehand which ones will be read."""

    def soon(self, indices: Indices) -> None:
        """These will be read, after those of before; none: take back what is not begun."""


@dataclass(frozen=True)
class Files:
    """Picture files; `names` are paths relative to `root`, or absolute ones."""

    root: Path
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    def name(self, i: int) -> str:
        return self.names[i]

    def path(self, i: int) -> str:
        """Where the file is, as the operating system takes it."""
        return os.path.join(self.root, self.names[i])  # noqa: PTH118 - a Path costs several times this

    def size(self, i: int) -> int:
        return os.stat(self.path(i)).st_size  # noqa: PTH116

    def read(self, i: int) -> bytes:
        with open(self.path(i), "rb", buffering=0) as file:  # noqa: PTH123
            return file.read()


@dataclass(frozen=True, eq=False)
class Arrays:
    """Decoded pictures in memory: `pixels` uint8 (n, H, W, C), named "part/0", "part/1" … within (part, count)."""

    pixels: Pixels
    parts: tuple[tuple[str, int], ...]

    def __len__(self) -> int:
        return len(self.pixels)

    def name(self, i: int) -> str:
        for part, here in self.parts:
            if i < here:
                return f"{part}/{i}"
            i -= here
        raise IndexError(i)

    def size(self, i: int) -> int:
        return int(self.pixels[i].nbytes)

    def read(self, i: int) -> Pixels:
        view: Pixels = self.pixels[i]
        return view


@dataclass(frozen=True, eq=False)
class Data:
    """Labelled pictures and how they are divided.

    labels   whole numbers (n,), index into `classes`; where `sets` is there, into its rows
    classes  in order of their names' bytes, as folders read so; the benchmark data sets have their own order
    splits   "train", "val", "test" to ascending indices; "all" alone where nothing divides the pictures. A picture
             that was left out, because it cannot be read, is in no split, and keeps its index.
    notes    sentences on what was met on the way, for the person who gave the pictures
    unlabelled  splits whose labels are not known, and stand as -1: the test pictures of a challenge
    sets     bool (combinations, classes), where a picture may have several labels or none: which labels each
             combination has. So a picture's label is one small number in either case. None: it has one
    shards   where the pictures of each shard begin, ascending, when those of one shard should be read near each other
             because each is read whole, or lies far away; None where any order costs the same
    far      whether they lie so far away that some are looked at, not all
    """

    spec: str
    pictures: Pictures
    labels: Labels
    classes: tuple[str, ...]
    splits: Mapping[str, Indices]
    notes: tuple[str, ...] = ()
    unlabelled: Mapping[str, Indices] = field(default_factory=dict)
    shards: Indices | None = None
    sets: NDArray[np.bool_] | None = None
    far: bool = False

    def __len__(self) -> int:
        return len(self.pictures)

    def select(self, split: str) -> Indices:
        """The indices of one split. Raises UserError that names the splits there are."""
        if split not in self.splits:
            raise UserError(f"{self.spec}: no split {split!r}; it has {', '.join(self.splits)}")
        return self.splits[split]

    def used(self) -> Indices:
        """The indices that are in any split, ascending."""
        parts = [np.asarray(indices, dtype=np.int64) for indices in self.splits.values()]
        return np.sort(np.concatenate(parts)) if parts else np.zeros(0, np.int64)

    def label_name(self, label: int) -> str:
        """What stands for a label: its class, or its classes with `|` between them."""
        if self.sets is None:
            return self.classes[label]
        return SEPARATOR.join(self.classes[place] for place in np.flatnonzero(self.sets[label]))

    def relabelled(self, classes: Sequence[str]) -> Data:
        """The same pictures with labels into a model's `classes`, matched by name.

        Raises UserError naming the classes of these pictures that are not among them.
        """
        place = {plain_name(name): index for index, name in enumerate(classes)}
        unknown = [name for name in self.classes if plain_name(name) not in place]
        if unknown:
            hint = nearest(unknown[0], classes)
            number = count(len(unknown), "class", "classes")
            raise UserError(
                f"{self.spec}: the model does not know {number}: {listing(unknown)}{hint}; "
                f"rename to one of its {len(classes):,}, or take the pictures out"
            )
        table = np.array([*(place[plain_name(name)] for name in self.classes), -1], dtype=np.int64)  # -1 stays -1
        if self.sets is not None:
            sets = np.zeros((len(self.sets), len(classes)), dtype=bool)
            sets[:, table[:-1]] = self.sets
            return replace(self, sets=sets, classes=tuple(classes))
        return replace(self, labels=table[self.labels], classes=tuple(classes))


def check_trainable(data: Data) -> None:
    """Raise UserError unless there are at least two classes, each with enough pictures to learn and to check."""
    train = next((data.splits[name] for name in ("train", "all") if len(data.splits.get(name, ()))), None)
    if train is None:
        raise UserError(
            f"{data.spec}: no pictures to train on; it has {', '.join(data.splits) or 'no pictures at all'}"
        )
    of_class = class_counts(data, train)
    everywhere = class_counts(data, data.used())
    if len(data.classes) < 2:
        raise UserError(
            f"{data.spec}: one class only ({data.classes[0]}); a classifier needs two or more, each in its own folder "
            "<class>/ (or under its own label in a table)"
        )
    for split, indices in data.splits.items():
        there = class_counts(data, indices)
        lacking = [name for name, here, n in zip(data.classes, of_class, there, strict=True) if n and not here]
        if lacking:
            raise UserError(
                f"{data.spec}: {split} has {count(len(lacking), 'class', 'classes')} that train lacks: "
                f"{listing(lacking)}; add pictures of it to train, or take it out of {split}"
            )
    for few, what in ((0, "no picture that can be read"), (1, "one picture only")):
        short = [name for name, n in zip(data.classes, everywhere, strict=True) if n == few]
        if short:
            raise UserError(
                f"{data.spec}: {count(len(short), 'class', 'classes')} with {what}: {listing(short)}; add pictures "
                "(two at least, one to learn from and one to check with), or take the class out"
            )


def class_sorted(data: Data, indices: Indices) -> bool:
    """Whether the shards of these pictures have few classes: not half of those of random samples as large.

    Looks at a thousand shards or two, spread over all. False where any order costs the same.
    """
    if data.shards is None:
        return False
    ends = np.append(np.searchsorted(indices, data.shards), len(indices)).tolist()
    spans = [(begin, end) for begin, end in pairwise(ends) if end - begin > 1]
    labels = data.labels[indices]
    others = 1 - np.bincount(labels) / max(1, len(labels))
    found = expected = 0.0
    for begin, end in spans[:: max(1, len(spans) // 1000)]:
        found += len(np.unique(labels[begin:end]))
        expected += float((1 - others ** (end - begin)).sum())
    return 2 * found < expected


def class_counts(data: Data, indices: Indices) -> list[int]:
    """How many of these pictures each class has."""
    if data.sets is None:
        return np.bincount(data.labels[indices], minlength=len(data.classes)).tolist()  # type: ignore[no-any-return]
    return (np.bincount(data.labels[indices], minlength=len(data.sets)) @ data.sets).tolist()  # type: ignore[no-any-return]


def label_table(names: Sequence[str]) -> tuple[Indices, tuple[str, ...]]:
    """Labels int64 (n,) and the classes, from the class name of each picture."""
    plain = {name: plain_name(name) for name in set(names)}
    classes = sorted(set(plain.values()), key=os.fsencode)
    place = {name: index for index, name in enumerate(classes)}
    return np.array([place[plain[name]] for name in names], dtype=np.int64), tuple(classes)


def label_type(classes: int) -> type[np.signedinteger[Any]]:
    """The smallest type of labels that index so many classes, and -1."""
    return np.int16 if classes < 1 << 15 else np.int32


def set_table(names: Sequence[frozenset[str]]) -> tuple[Indices, tuple[str, ...], NDArray[np.bool_]]:
    """Labels int64 (n,), the classes, and bool (combinations, classes), from the plain class names of each picture."""
    classes = sorted(set().union(*names), key=os.fsencode)
    combinations = sorted(set(names), key=sorted)
    place = {names: index for index, names in enumerate(combinations)}
    sets = np.array([[name in each for name in classes] for each in combinations], dtype=bool)
    return np.array([place[each] for each in names], dtype=np.int64), tuple(classes), sets


def plain_name(name: str) -> str:
    """One spelling for a class: macOS stores "é" as two code points and others as one."""
    return unicodedata.normalize("NFC", name)


def listing(names: Sequence[str]) -> str:
    """Up to ten names, then a count of the others."""
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def count(n: int, one: str, many: str) -> str:
    """`"1 class"`, `"1,200 classes"`."""
    return f"{n:,} {one if n == 1 else many}"


def name_bad(data: Data, bad: Mapping[int, str], skip: str = 'set data.bad = "skip"') -> str:
    """One sentence that names up to ten pictures that cannot be read, counts the others and says what to do.

    skip   how the pictures are left out, where it was called
    """
    named = [f"{data.pictures.name(index)} ({reason})" for index, reason in sorted(bad.items())[:SHOWN]]
    more = f" and {len(bad) - SHOWN:,} more" if len(bad) > SHOWN else ""
    number, them = count(len(bad), "picture", "pictures"), "it" if len(bad) == 1 else "them"
    return f"{data.spec}: {number} cannot be read: {'; '.join(named)}{more}; mend or remove {them}, or {skip}"

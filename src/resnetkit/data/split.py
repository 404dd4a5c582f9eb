"""Keeping back a share of the training pictures for validation, or each of k folds in turn, and remembering which."""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from resnetkit.atomic import write_text
from resnetkit.data.pictures import Data, Labels, class_counts, count, listing
from resnetkit.errors import UserError

HEADER = ["path", "label", "split"]
MANY = ["path", "labels", "split"]  # where pictures may have several
FEW = 5  # combinations of labels with fewer pictures are divided together


def split_training(data: Data, share: float, seed: int, digests: NDArray[np.uint8]) -> Data:
    """Keep back about `share` of each class's pictures as "val", where the data do not say what to validate on.

    digests  uint8 (n, 32), each picture's SHA-256; all zero where a picture was not read

    Data with "val" come back as they are. Undivided data become "train" and "val"; with share 0, "train" alone.
    Which pictures are kept back follows from their bytes and the seed, not from names or order. Identical pictures stay
    together: in train where they have different labels. So each class with at least two different pictures, one of
    which has no other label, gets a picture on both sides. Raises UserError unless 0 <= share < 1.
    """
    if not 0 <= share < 1:
        raise UserError(f"data.val={share}: must be at least 0 and below 1")
    source = next((name for name in ("train", "all") if name in data.splits), None)
    if "val" in data.splits or source is None or (share == 0 and source == "train"):
        return data
    pool = data.splits[source]
    rest = {name: indices for name, indices in data.splits.items() if name != source}
    if share == 0:
        return replace(data, splits={"train": pool, **rest})
    groups = in_seeded_order(identical(data, pool, digests), seed)
    kinds = kinds_of(data, pool)
    pure: dict[int, list[list[int]]] = defaultdict(list)
    for group in groups:
        if len(set(data.labels[group].tolist())) == 1:
            pure[int(kinds[group[0]])].append(group)
    totals = np.bincount(kinds[pool])
    kept = sorted(i for kind, own in pure.items() for group in keep_back(own, int(totals[kind]), share) for i in group)
    val = never_all(data, pool, np.array(kept, dtype=np.int64))
    said = f"kept back {len(val):,} of {count(len(pool), 'picture', 'pictures')} for validation (seed {seed})"
    lacking = [name for name, n in zip(data.classes, class_counts(data, val), strict=True) if not n]
    without = f", none of {listing(lacking)}" if lacking else ""
    return replace(
        data, splits={"train": np.setdiff1d(pool, val), "val": val, **rest}, notes=(*data.notes, said + without)
    )


def kinds_of(data: Data, pool: NDArray[np.int64]) -> Labels:
    """What is divided one by one: the classes, or the combinations of labels, the rare ones of which are one kind."""
    if data.sets is None:
        return data.labels
    rare = np.bincount(data.labels[pool], minlength=len(data.sets)) < FEW
    kinds: NDArray[np.int64] = np.where(rare[data.labels], len(data.sets), data.labels)
    return kinds


def never_all(data: Data, pool: NDArray[np.int64], val: NDArray[np.int64]) -> NDArray[np.int64]:
    """`val` without the pictures of labels that no other picture would show in training."""
    if data.sets is None:
        return val
    gone = np.array(class_counts(data, np.setdiff1d(pool, val))) == 0
    alone: NDArray[np.bool_] = (data.sets & gone).any(1)
    return val[~alone[data.labels[val]]]


def split_folds(data: Data, folds: int, seed: int, digests: NDArray[np.uint8]) -> list[Data]:
    """The pictures once for each of `folds` parts: that part as "val", the others as "train".

    digests  as for `split_training`

    Each class is spread over the parts as evenly as can be, and the parts are of like size; identical pictures are in
    one. Raises UserError for data that are divided already, and for a class with fewer different pictures than folds.
    """
    if len(data.splits) != 1:
        raise UserError(
            f"{data.spec}: is divided already, into {', '.join(data.splits)}, and folds divide all there is; give the "
            "pictures to learn from alone, such as its folder train, and keep the others for resnet evaluate"
        )
    ((_, pool),) = data.splits.items()
    groups = in_seeded_order(identical(data, pool, digests), seed)
    different = np.bincount(
        [label for group in groups for label in set(data.labels[group].tolist())], minlength=len(data.classes)
    ).tolist()
    few = [f"{name} ({n})" for name, n in zip(data.classes, different, strict=True) if n < folds]
    if few:
        raise UserError(
            f"{data.spec}: {count(len(few), 'class', 'classes')} with fewer different pictures than the {folds} folds: "
            f"{listing(few)}; take fewer folds, add pictures, or take the class out"
        )
    parts = []
    for number, own in enumerate(spread(groups, data.labels, folds), start=1):
        val = np.array(sorted(own), dtype=np.int64)
        said = f"fold {number} of {folds} kept back: {len(val):,} of {count(len(pool), 'picture', 'pictures')}"
        notes = (*data.notes, f"{said} (seed {seed})")
        parts.append(replace(data, splits={"train": np.setdiff1d(pool, val), "val": val}, notes=notes))
    return parts


def spread(groups: list[list[int]], labels: Labels, folds: int) -> list[list[int]]:
    """The pictures of each fold; each group goes where there are fewest of its classes, the rarest first.

    Groups that are hard to place come first: those of several classes, then the large ones. The rest comes class by
    class, so that what is left over of each class evens out the folds.
    """
    total = np.bincount(labels[[i for group in groups for i in group]])
    has = np.zeros((len(total), folds), np.int64)
    parts: list[list[int]] = [[] for _ in range(folds)]

    def hardness(group: list[int]) -> tuple[bool, int, int]:
        own = set(labels[group].tolist())
        return len(own) == 1, -len(group), min(own)

    for group in sorted(groups, key=hardness):
        own = sorted(set(labels[group].tolist()), key=lambda label: (total[label], label))
        fold = min(range(folds), key=lambda f: (*has[own, f].tolist(), len(parts[f]), f))
        parts[fold] += group
        np.add.at(has[:, fold], labels[group], 1)
    return parts


def identical(data: Data, pool: NDArray[np.int64], digests: NDArray[np.uint8]) -> dict[bytes, list[int]]:
    """The pool in groups of identical pictures. One that was not read is alone, under the digest of its name."""
    groups: dict[bytes, list[int]] = defaultdict(list)
    unread = bytes(digests.shape[1])
    for index in pool.tolist():
        digest = digests[index].tobytes()
        groups[hashlib.sha256(os.fsencode(data.pictures.name(index))).digest() if digest == unread else digest].append(
            index
        )
    return groups


def in_seeded_order(groups: dict[bytes, list[int]], seed: int) -> list[list[int]]:
    """Shuffled by a keyed hash: a picture that is added or taken out leaves the order of the others alone."""
    key = str(seed).encode()
    return [
        group for _, group in sorted((hashlib.blake2b(digest, key=key).digest(), g) for digest, g in groups.items())
    ]


def keep_back(groups: list[list[int]], total: int, share: float) -> list[list[int]]:
    """The first groups that fit into round(share * total) pictures, at least one and never all of the class."""
    wanted = min(max(round(share * total), 1), total - 1)
    kept: list[list[int]] = []
    for group in groups:
        if len(group) <= wanted:
            kept.append(group)
            wanted -= len(group)
    if not kept:
        smallest = min(groups, key=len)
        kept = [smallest] if len(smallest) < total else []
    return kept


def save_split(data: Data, path: Path) -> None:
    """Write path,label,split of every picture that is in a split, as CSV. Raises UserError when that fails."""
    text = io.StringIO(newline="")
    table = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")  # quoted, so that any name comes back
    table.writerow(HEADER if data.sets is None else MANY)
    table.writerows(sorted((name, label, split) for _, name, label, split in rows(data)))
    try:
        write_text(path, text.getvalue())
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error


def load_split(data: Data, path: Path) -> Data:
    """The same pictures, divided as `save_split` wrote down.

    Raises UserError when the pictures or their labels are no longer those of the file, or the file is damaged.
    """
    saved = read_split(path)
    here = {name: (index, label) for index, name, label, _ in rows(data)}
    for what, names in (
        ("are new", here.keys() - saved.keys()),
        ("are gone", saved.keys() - here.keys()),
        ("have another label", {name for name in here.keys() & saved.keys() if here[name][1] != saved[name][0]}),
    ):
        if names:
            raise UserError(
                f"{data.spec}: the pictures are not those of {path}: {len(names):,} {what}, such as "
                f"{sorted(names)[0]}; put them back as they were, or begin a new run"
            )
    members: dict[str, list[int]] = {name: [] for name in ("train", "val", "test", "all")}
    for name, (_, split) in saved.items():
        members[split].append(here[name][0])
    splits = {split: np.array(sorted(indices), dtype=np.int64) for split, indices in members.items() if indices}
    return replace(data, splits=splits)


def rows(data: Data) -> Iterator[tuple[int, str, str, str]]:
    """(index, name, class, split) of every picture that is in a split."""
    for split, indices in data.splits.items():
        for index, label in zip(indices.tolist(), data.labels[indices].tolist(), strict=True):
            yield index, data.pictures.name(index), data.label_name(label), split


def read_split(path: Path) -> dict[str, tuple[str, str]]:
    """Name to (class, split)."""
    saved: dict[str, tuple[str, str]] = {}
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            table = csv.reader(file, strict=True)
            if next(table, None) not in (HEADER, MANY):
                raise UserError(f"{path}: no split file: its first line is not {','.join(HEADER)}")
            for cells in table:
                if len(cells) != len(HEADER) or cells[2] not in ("train", "val", "test", "all"):
                    raise UserError(f"{path}, line {table.line_num}: not path,label,split; restore the file")
                saved[cells[0]] = cells[1], cells[2]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except csv.Error as error:
        raise UserError(f"{path}: damaged split file ({error}); restore it") from error
    return saved

"""Two or more pools of pictures as one: train and validation from different places."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import numpy as np

from resnetkit.data.pictures import Data, Foretold, Indexed, Indices, Pictures, Pixels, Records
from resnetkit.errors import UserError


@dataclass(frozen=True, eq=False)
class Joined:
    """Pools one after the other; the names of each get its prefix."""

    parts: tuple[Pictures, ...]
    prefixes: tuple[str, ...]

    @cached_property
    def starts(self) -> list[int]:
        return [0, *accumulate(map(len, self.parts))]

    def __len__(self) -> int:
        return self.starts[-1]

    def _place(self, i: int) -> tuple[int, int]:
        part = bisect_right(self.starts, i) - 1
        return part, i - self.starts[part]

    def name(self, i: int) -> str:
        part, own = self._place(i)
        return self.prefixes[part] + self.parts[part].name(own)

    def size(self, i: int) -> int:
        part, own = self._place(i)
        return self.parts[part].size(own)

    def read(self, i: int) -> bytes | Pixels:
        part, own = self._place(i)
        return self.parts[part].read(own)

    def soon(self, indices: Indices) -> None:
        """As `Foretold`."""
        for part, begin, end in zip(self.parts, self.starts, self.starts[1:], strict=False):
            own = indices[(indices >= begin) & (indices < end)] - begin
            if isinstance(part, Foretold) and (len(own) or not len(indices)):
                part.soon(own)

    def records(self) -> Records | None:
        """As `Indexed`; None unless every part has records."""
        found = [part.records() if isinstance(part, Indexed) else None for part in self.parts]
        known = [each for each in found if each is not None]
        if len(known) < len(found):
            return None
        begun = zip(self.starts, known, strict=False)
        odd = {start + i: kinds for start, each in begun for i, kinds in each.odd.items()}
        digest, width, height = (
            np.concatenate([getattr(each, name) for each in known]) for name in ("digest", "width", "height")
        )
        return Records(digest, width, height, odd, all(each.all_grey for each in known))

    def fingerprint(self) -> str:
        """As `Indexed`; of a part without an index, over names and sizes."""
        total = hashlib.sha256()
        for part, prefix in zip(self.parts, self.prefixes, strict=True):
            total.update(f"{prefix}\0{len(part)}\0".encode())
            if isinstance(part, Indexed):
                total.update(part.fingerprint().encode())
                continue
            for i in range(len(part)):
                total.update(f"{part.name(i)}\0{part.size(i)}\0".encode("utf-8", "surrogateescape"))
        return total.hexdigest()


def with_validation(train: Data, val: Data) -> Data:
    """The pictures of `train` to learn from, and those of `val` to check with; names begin with train/ and val/.

    Each must be of one split, whatever its name, or have "train", or "val" (else "test"), beside others. Raises
    UserError: DATA that has a split to check with, classes in `val` that `train` lacks, several labels a picture.
    """
    if train.sets is not None or val.sets is not None:
        raise UserError(f"--val {val.spec}: pictures with several labels come in one table; give it a column split")
    own = next((name for name in ("val", "test") if name in train.splits and len(train.splits) > 1), None)
    if own is not None:
        raise UserError(f"{train.spec}: has the split {own}, and --val {val.spec} is given too; leave out one of them")
    learn, checked = only(train, ("train", "all")), only(val, ("val", "test", "all"))
    val = val.relabelled(train.classes)
    kind = np.result_type(train.labels, np.int16)
    labels = np.concatenate([train.labels, val.labels.astype(kind)])
    shards = None
    if train.shards is not None or val.shards is not None:
        begin = [data.shards if data.shards is not None else np.zeros(1, np.int64) for data in (train, val)]
        shards = np.concatenate([begin[0], begin[1] + len(train)])
    splits = {"train": learn, "val": checked + len(train)}
    joined = Joined((train.pictures, val.pictures), ("train/", "val/"))
    notes = (*train.notes, *(f"--val: {note}" for note in val.notes))
    far = train.far or val.far
    return replace(train, pictures=joined, labels=labels, splits=splits, notes=notes, shards=shards, far=far)


def only(data: Data, names: tuple[str, ...]) -> Indices:
    """The indices of the first split of these names; of the only one, whatever its name."""
    if len(data.splits) == 1:
        return next(iter(data.splits.values()))
    name = next((name for name in names if name in data.splits), None)
    if name is None:
        raise UserError(f"{data.spec}: has no split {' or '.join(names)}, only {', '.join(data.splits) or 'none'}")
    return data.splits[name]

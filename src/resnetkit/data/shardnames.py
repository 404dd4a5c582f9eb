"""What the names of shards say: which split each is of."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

import numpy as np

from resnetkit.data.pictures import SPLITS, Indices, listing
from resnetkit.errors import UserError


def divided(names: Sequence[str], starts: Indices, spec: str) -> dict[str, Indices]:
    """The splits, from the names of shards of which shard k has the pictures starts[k] … starts[k + 1] - 1."""
    of = [split_of(name) for name in names]
    silent = [name for name, split in zip(names, of, strict=True) if split is None]
    if silent and len(silent) < len(names):
        raise UserError(
            f"{spec}: {listing(silent)} of no split, beside {next(n for n in names if n not in silent)}; put train, "
            "val or test into every name, or into none"
        )
    if silent:
        return {"all": np.arange(int(starts[-1]), dtype=np.int64)}
    sizes = np.diff(starts)
    return {
        split: np.flatnonzero(np.repeat([each == split for each in of], sizes))
        for split in ("train", "val", "test")
        if split in of
    }


def split_of(name: str) -> str | None:
    """The split that a shard's name has as a word, or its folder as its name: "train-0012.tar", "val/0003.tar"."""
    folder, _, last = name.replace(os.sep, "/").rpartition("/")
    words = {SPLITS[word] for word in re.split("[^a-z]+", last.lower()) if word in SPLITS}
    if len(words) == 1:
        return words.pop()
    return SPLITS.get(folder.rpartition("/")[2].lower())

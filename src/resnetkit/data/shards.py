"""WebDataset tars as labelled pictures: what their names say of splits, what their indexes say of classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from resnetkit.data.blobs import Blobs, LocalBlobs
from resnetkit.data.members import open_members
from resnetkit.data.pictures import Data, count
from resnetkit.data.shardnames import divided
from resnetkit.errors import UserError


def load_shards(
    names: Sequence[str], spec: str, *, blobs: Callable[[list[str]], Blobs] = LocalBlobs, far: bool = False
) -> Data:
    """The pictures of tars as `resnet shard` and WebDataset write them; see `data.tars` for what a sample is.

    names  paths, or URLs that `blobs` takes
    far    the store is so slow for single pictures that those of one shard should be read near each other
    Order: tar by tar as given, in each the order of its members. Raises UserError: no picture, a picture without a
    label, names of which some tell a split and others not, and as `open_members` does.
    """
    opened = open_members(blobs(list(names)), blobs if far else None)
    pictures = opened.pictures
    if not len(pictures):
        n, example = opened.others
        found = f"no picture among its {count(n, 'file', 'files')}, such as {example}" if n else "empty"
        raise UserError(f"{spec}: {found}; a sample is a picture and its label, such as 7.jpg and 7.cls")
    without = opened.labels < 0
    if without.any():
        raise UserError(
            f"{spec}: {pictures.name(int(without.argmax()))}: a picture without a label "
            f"({int(without.sum()):,} of {len(pictures):,}); write its class into a .cls beside it, or as "
            '"label" into a .json'
        )
    splits = divided(names, np.array(pictures.starts, np.int64), spec)
    n, example = opened.others
    notes = (f"skipped {count(n, 'file', 'files')} of no sample, such as {example}",) if n else ()
    starts = np.array(pictures.starts[:-1], np.int64) if far else None
    return Data(spec, pictures, opened.labels, opened.classes, splits, notes, shards=starts, far=far)

"""The pictures of a training: where they come from, and what one look at each of them says before it begins."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

from resnetkit.data.audit import (
    LIMIT_BYTES,
    Audit,
    Record,
    audit_pictures,
    from_records,
    require_good,
    sampled,
    total_bytes,
    without_bad,
)
from resnetkit.data.joined import with_validation
from resnetkit.data.loader import default_threads
from resnetkit.data.pictures import Data
from resnetkit.data.source import open_data
from resnetkit.distributed import Ranks
from resnetkit.events import Reading
from resnetkit.recipe import Recipe


def open_both(data: str | Path, val: str | Path | None, *, several: bool = False) -> Data:
    """The pictures to learn from, and those to check with where they come from another place; as `open_data`."""
    learn = open_data(data, several=several)
    return learn if val is None else with_validation(learn, open_data(val, several=several))


def look_at(data: Data, recipe: Recipe, ranks: Ranks) -> Generator[Reading, None, tuple[Data, Audit]]:
    """Read every picture once, each on one rank, unless an index knows them or there are too many.

    Returns the data without bad pictures, and what was found on all ranks; or raises UserError that names bad ones.
    """
    known = from_records(data)
    if known is not None:
        return data, known
    chosen = sampled(data)
    wanted = data.used() if chosen is None else chosen
    begin, end = ranks.share(len(wanted))
    limit = LIMIT_BYTES if ranks.world == 1 else math.inf if total_bytes(data, wanted) <= LIMIT_BYTES else -1
    records = audit_pictures(
        data,
        indices=wanted[begin:end],
        exif=recipe.data.exif,
        channels=recipe.data.channels if isinstance(recipe.data.channels, int) else 3,
        threads=max(1, default_threads() // ranks.here),
        limit_bytes=limit,
    )
    own = yield from counted(records, end - begin)
    ranks.meet()
    audit = replace(
        Audit.collect(len(data), chain.from_iterable(ranks.exchanged(own))),
        whole=chosen is None,
    )
    if recipe.data.bad == "stop":
        require_good(data, audit)
    return without_bad(data, audit), audit


def counted(records: Iterator[Record], total: int) -> Generator[Reading, None, list[Record]]:
    """All records; how many there are so far is said on the way."""
    seen = []
    for record in records:
        seen.append(record)
        if len(seen) % 500 == 0 or len(seen) == total:
            yield Reading(len(seen), total)
    return seen

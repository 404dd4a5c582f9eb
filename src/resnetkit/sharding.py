"""`resnet shard`: pictures from anywhere to WebDataset tars with indexes and checksums, written once and read fast.

    OUT/train-000000.tar          key.jpg and key.cls, the class's number as text; at most so many bytes
    OUT/train-000000.tar.index    where each picture is, its SHA-256, its size in pixels; see `data.tarindex`
    OUT/index.json                classes, splits, the SHA-256 of each shard, how they were made

Which picture goes where is decided before the first is read, from names and sizes alone: in a seeded shuffled order, so
that the pictures of a shard are a sample of all. The same pictures give the same bytes, at any number of threads, and
a run that was killed goes on with the shards that are missing.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from resnetkit.atomic import write_json
from resnetkit.data import tarindex
from resnetkit.data.blobs import LocalBlobs
from resnetkit.data.loader import default_threads, order, shown
from resnetkit.data.pictures import Data, Indices, class_sorted
from resnetkit.data.shardwriter import Written, room, write_shard
from resnetkit.data.source import open_data
from resnetkit.data.tarindex import SUFFIX
from resnetkit.data.tars import Tar, find_pictures
from resnetkit.errors import UserError

INDEX = "index.json"
FORMAT = "resnetkit shards 1"
SEED = 0  # of the order
HOLDING = 4  # shards in memory


@dataclass(frozen=True)
class Sharding:
    """So far: pictures and bytes of shards that are whole, of all."""

    done: int
    total: int
    verifying: bool = False


@dataclass(frozen=True)
class Sharded:
    """The end: what lies in the folder now."""

    out: Path
    shards: int
    pictures: int
    bytes: int
    kept: int  # shards that were there already
    bad: dict[str, str] = field(default_factory=dict)  # left out: name to reason


@dataclass(frozen=True)
class Plan:
    """A shard that shall be: its file's name, and the pictures in their order."""

    name: str
    indices: Indices


def shard(
    data: str | Path,
    out: str | Path,
    *,
    shard_mb: int = 256,
    short_side: int | None = None,
    bad: str = "stop",
    verify: bool = False,
) -> Iterator[Sharding | Sharded]:
    """Write the pictures of `data` (see `open_data`) as shards into the folder `out`; the last event is `Sharded`.

    shard_mb    at most so many MiB a shard, by the sizes of the pictures as they are
    short_side  make a JPEG of quality 90 of each picture whose shorter side is longer, resized to it; None: the bytes
                as they are (decoded pictures, which have none, become PNG)
    bad         what to do about pictures that cannot be read: "stop" or "skip"
    verify      read all shards back and compare with their checksums and indexes
    Raises UserError: bad pictures, a folder of other shards, no room; whole shards stay and are not made again.
    """
    found, folder = open_data(data), Path(out)
    plans = planned(found, shard_mb << 20)
    made = {"shard_mb": shard_mb, "short_side": short_side, "seed": SEED}
    recipe = {**made, "pictures": "as they were" if short_side is None else "JPEG, quality 90, where resized"}
    digest = plan_digest(found, plans, recipe)
    prepare(folder, digest)
    total, done = sum(len(plan.indices) for plan in plans), 0
    written: list[Written] = []
    kept = 0
    try:
        for each, was_there in in_order(found, folder, plans, digest, short_side, bad):
            done += len(plans[len(written)].indices)
            kept += was_there
            written.append(each)
            yield Sharding(done, total)
        write_json(folder / INDEX, described(found, written, plans, recipe, digest))
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror}); make room, then type the command again"
        ) from None
    if verify:
        yield from verified(folder, written, total)
    left_out = {name: reason for each in written for name, reason in each.bad.items()}
    pictures = sum(each.pictures for each in written)
    yield Sharded(folder, len(written), pictures, sum(each.bytes for each in written), kept, left_out)


def planned(data: Data, most: int) -> list[Plan]:
    """Which picture goes into which shard, split by split; each shard as full as `most` bytes allow."""
    plans = []
    for split, indices in data.splits.items():
        mixed = indices[order(SEED, 0, len(indices))] if class_sorted(data, indices) else shown(data, indices, SEED, 0)
        sizes = np.array([room(data.pictures.size(i)) for i in mixed.tolist()], np.int64)
        begin = 0
        ends = np.cumsum(sizes)
        cuts: list[tuple[int, int]] = []
        while begin < len(mixed):
            before = int(ends[begin - 1]) if begin else 0
            end = max(begin + 1, int(np.searchsorted(ends, before + most, "right")))
            cuts.append((begin, end))
            begin = end
        plans += [Plan(f"{split}-{k:06}.tar", mixed[a:b]) for k, (a, b) in enumerate(cuts)]
    return plans


def plan_digest(data: Data, plans: list[Plan], recipe: dict[str, Any]) -> str:
    """SHA-256, as hex, over all that decides the shards but the pictures' bytes."""
    total = hashlib.sha256(json.dumps([recipe, data.classes]).encode())
    for plan in plans:
        total.update(f"{plan.name}\0".encode())
        for i in plan.indices.tolist():
            row = f"{data.pictures.name(i)}\0{data.pictures.size(i)}\0{data.labels[i]}\0"
            total.update(row.encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def prepare(folder: Path, digest: str) -> None:
    """Make the folder, and clear away what a killed run had half written. Raises UserError for other shards in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for index in sorted(folder.glob(f"*.tar{SUFFIX}")):
            if tarindex.load(index).about.get("set") != digest:
                raise UserError(
                    f"{folder}: holds shards of other pictures or settings, such as {index.name}; give another folder, "
                    "or remove them"
                )
        for part in folder.glob(".*.part"):
            part.unlink()
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from None


def in_order(
    data: Data, folder: Path, plans: list[Plan], digest: str, short_side: int | None, bad: str
) -> Iterator[tuple[Written, bool]]:
    """The shards in their order, each written by a thread or there already, and which it is."""

    def make(plan: Plan) -> tuple[Written, bool]:
        there = Written.of(folder / plan.name)
        if there is not None:
            return there, True
        written = write_shard(data, plan.indices, folder / plan.name, digest, short_side, skip=bad == "skip")
        return written, False

    waiting = iter(plans)
    threads = 2 * default_threads()  # as many again, because each waits for its disk when a shard is whole
    if data.shards is not None:  # of which each thread holds the pictures of a shard in memory
        threads = min(threads, HOLDING)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="shard")
    try:
        under_way: deque[Future[tuple[Written, bool]]] = deque(
            pool.submit(make, plan) for plan in islice(waiting, 2 * threads)
        )
        while under_way:
            yield under_way.popleft().result()
            under_way.extend(pool.submit(make, plan) for plan in islice(waiting, 1))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def described(
    data: Data, written: list[Written], plans: list[Plan], recipe: dict[str, Any], digest: str
) -> dict[str, Any]:
    """index.json."""
    splits: dict[str, Any] = {}
    of = {plan.name: split for split in data.splits for plan in plans if plan.name.startswith(f"{split}-")}
    for each in written:
        part = splits.setdefault(of[each.name], {"pictures": 0, "shards": []})
        part["pictures"] += each.pictures
        about = {"name": each.name, "pictures": each.pictures, "bytes": each.bytes, "sha256": each.sha256}
        part["shards"].append(about)
    left_out = {name: reason for each in written for name, reason in each.bad.items()}
    return {
        "format": FORMAT,
        "classes": list(data.classes),
        "splits": splits,
        "recipe": recipe,
        "left_out": left_out,
        "set": digest,
    }


def verified(folder: Path, written: list[Written], total: int) -> Iterator[Sharding]:
    """Read every shard back. Raises UserError naming those that are not what was written."""
    done = 0
    with ThreadPoolExecutor(default_threads(), thread_name_prefix="verify") as pool:
        for each, wrong in zip(written, pool.map(partial(difference, folder), written), strict=True):
            if wrong:
                raise UserError(f"{folder / each.name}: {wrong}; remove it with its index, then type the command again")
            done += each.pictures
            yield Sharding(done, total, verifying=True)


def difference(folder: Path, written: Written) -> str:
    """What about a shard on the disk is not as it was written; "" where all is well."""
    path = folder / written.name
    blobs = LocalBlobs([str(path)])
    try:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != written.sha256:
                return "its SHA-256 is not that of its index, so its bytes have changed"
        found = find_pictures(Tar(str(path), blobs.size(0), partial(blobs.read, 0)), [])
        index = tarindex.load(path.with_name(path.name + SUFFIX))
        digests = index.column("sha256")
        for row, picture in enumerate(found):
            data = blobs.read(0, picture.start, picture.length)
            if hashlib.sha256(data).digest() != digests[row].tobytes():
                return f"the SHA-256 of {picture.name} is not that of the index"
    except (OSError, UserError) as error:
        return str(error)
    places = [(p.name, p.start // tarindex.BLOCK, p.length, p.label) for p in found]
    held = index.held()
    labels = map(str, held["labels"].tolist())
    told = zip(index.names(0, index.n), held["offsets"].tolist(), held["lengths"].tolist(), labels, strict=True)
    return "" if places == list(told) else "its index says other pictures than the tar has"

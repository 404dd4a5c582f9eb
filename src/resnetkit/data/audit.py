"""Looking at every picture once, before anything is learnt from them: contents' hashes, sizes, damage, oddities."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from resnetkit.data.decode import Header, decode, luma, probe
from resnetkit.data.pictures import SHOWN, Data, Indexed, Indices, Pixels, count, name_bad
from resnetkit.errors import BadPicture, UserError

MOST = 2_000_000  # pictures that are all looked at; ILSVRC-2012 has 1.3 million
LOOKED_AT = 10_000  # of more, or where they lie far away
RUN = 100  # that lie beside each other, of those far away
CHUNK = 16  # pictures per task: handing one over costs as much as reading a small picture
LIMIT_BYTES = 4e9  # of more than so many, only the headers are decoded
SAMPLE = 2000  # pictures that the channel statistics are taken from

SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "GIF": (".gif",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp", ".dib"),
}
GREY = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "I;16N")
T = TypeVar("T")


@dataclass(frozen=True)
class Record:
    """What was found out about one picture."""

    index: int
    digest: bytes = b""  # SHA-256 of the file, or of a decoded picture's bytes
    width: int = 0  # as shown, pixels
    height: int = 0
    error: str = ""  # why it cannot be read
    odd: tuple[str, ...] = ()
    grey: bool = False  # by its header
    decoded: bool = True  # False: the header alone was looked at


@dataclass(frozen=True, eq=False)
class Audit:
    """The records of a pool of n pictures as arrays by index; zeros for those not looked at.

    indices  int64, ascending: the pictures that were looked at
    digest   uint8 (n, 32); zeros also where the file could not be opened
    width, height  int32 (n,), as shown
    error    index to reason, of those that cannot be read
    odd      index to what is unusual, of those read by a rule one should know
    all_grey every picture that can be read is grey, by its header
    decoded  every picture was decoded; False: the headers alone, because there are so many bytes
    whole    every picture of the splits was looked at; False: a sample, because there are so many
    """

    indices: Indices
    digest: NDArray[np.uint8]
    width: NDArray[np.int32]
    height: NDArray[np.int32]
    error: dict[int, str]
    odd: dict[int, tuple[str, ...]]
    all_grey: bool
    decoded: bool
    whole: bool = True

    @classmethod
    def collect(cls, n: int, records: Iterable[Record]) -> Audit:
        """The audit of a pool of n pictures from the records of some of them, in any order."""
        digest = np.zeros((n, 32), np.uint8)
        size = np.zeros((2, n), np.int32)
        error, odd, seen, grey, decoded = {}, {}, [], True, True
        for record in records:
            seen.append(record.index)
            if record.digest:
                digest[record.index] = np.frombuffer(record.digest, np.uint8)
            size[:, record.index] = record.width, record.height
            if record.error:
                error[record.index] = record.error
                continue
            if record.odd:
                odd[record.index] = record.odd
            grey = grey and record.grey
            decoded = decoded and record.decoded
        some_good = len(seen) > len(error)
        return cls(np.array(sorted(seen), np.int64), digest, size[0], size[1], error, odd, grey and some_good, decoded)


def audit(
    data: Data,
    *,
    indices: Indices | None = None,
    exif: bool = True,
    channels: int = 3,
    threads: int,
    limit_bytes: float = LIMIT_BYTES,
) -> Audit:
    """Read every picture of `indices` (None: all that are in a split) once; see `audit_pictures`."""
    records = audit_pictures(
        data, indices=indices, exif=exif, channels=channels, threads=threads, limit_bytes=limit_bytes
    )
    return Audit.collect(len(data), records)


def from_records(data: Data) -> Audit | None:
    """The audit of pictures that `resnet shard` looked at when it wrote them, from its index; None where it did not."""
    found = data.pictures.records() if isinstance(data.pictures, Indexed) and len(data) <= MOST else None
    if found is None:
        return None
    odd = dict(found.odd)
    return Audit(data.used(), found.digest, found.width, found.height, {}, odd, found.all_grey, decoded=False)


def sampled(data: Data) -> Indices | None:
    """The pictures to look at where not all can be: so many, or so far away. None: all of them.

    The same ones for the same numbers of pictures, spread evenly over them; far away in runs, each read together.
    """
    used = data.used()
    if len(used) <= (LOOKED_AT if data.far else MOST):
        return None
    run = RUN if data.far else 1
    begin = np.linspace(0, len(used) - run, LOOKED_AT // run).astype(np.int64)
    chosen: Indices = used[(begin[:, None] + np.arange(run)).ravel()]
    return chosen


def audit_pictures(
    data: Data,
    *,
    indices: Indices | None = None,
    exif: bool = True,
    channels: int = 3,
    threads: int,
    limit_bytes: float = LIMIT_BYTES,
) -> Iterator[Record]:
    """A record for each picture, in order, as they come: whoever iterates may show progress.

    Each file is read once, hashed and decoded; when all files together have more than `limit_bytes`, only the headers
    are looked at, and damage behind a header shows later. At most one picture per thread is in memory.
    """
    wanted = data.used() if indices is None else indices
    whole = total_bytes(data, wanted) <= limit_bytes

    def look(index: int) -> Record:
        try:
            picture = data.pictures.read(index)
        except OSError as error:
            return Record(index, error=f"cannot be opened: {error.strerror}")
        except BadPicture as error:
            return Record(index, error=str(error))
        if isinstance(picture, np.ndarray):
            digest = hashlib.sha256(picture.tobytes()).digest()
            height, width, depth = picture.shape
            return Record(index, digest, width, height, grey=depth == 1)
        digest = hashlib.sha256(picture).digest()
        try:
            header = probe(picture)
            if whole:
                decode(picture, channels=channels, exif=exif)
        except BadPicture as error:
            return Record(index, digest, error=str(error))
        odd = oddities(header, data.pictures.name(index))
        return Record(index, digest, header.width, header.height, "", odd, header.mode in GREY, whole)

    return in_threads(look, wanted, threads)


def in_threads(work: Callable[[int], T], indices: Indices, threads: int) -> Iterator[T]:
    """`work` of each index, in order; only as many under way as keep the threads busy."""

    def run(chunk: list[int]) -> list[T]:
        return [work(index) for index in chunk]

    chunks = (indices[at : at + CHUNK].tolist() for at in range(0, len(indices), CHUNK))
    pool = ThreadPoolExecutor(threads, thread_name_prefix="audit")
    try:
        under_way: deque[Future[list[T]]] = deque(pool.submit(run, chunk) for chunk in islice(chunks, 3 * threads))
        while under_way:
            done = under_way.popleft().result()
            under_way.extend(pool.submit(run, chunk) for chunk in islice(chunks, 1))
            yield from done
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def total_bytes(data: Data, indices: Indices) -> int:
    """Of all files together; one that cannot be looked up counts nothing here and is reported when it is read."""
    total = 0
    for index in indices.tolist():
        try:
            total += data.pictures.size(index)
        except OSError:
            continue
    return total


def oddities(header: Header, name: str) -> tuple[str, ...]:
    """What about a picture is read by a rule of `decode` that one should know of."""
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122
    allowed = SUFFIXES.get(header.format)
    found = (
        ("CMYK", header.mode == "CMYK"),
        ("16-bit", header.mode.startswith("I")),
        ("one-bit", header.mode == "1"),
        ("alpha", header.mode in ("RGBA", "LA", "PA", "RGBa", "La")),
        ("palette", header.mode in ("P", "PA")),
        ("EXIF-rotated", header.orientation != 1),
        ("animated", header.frames > 1),
        (f"wrong extension: {header.format} named {suffix}", allowed is not None and suffix not in ("", *allowed)),
    )
    return tuple(what for what, is_so in found if is_so)


def shorter_sides(audit: Audit, indices: Indices) -> NDArray[np.int32]:
    """The shorter sides, in pixels, of those of `indices` that were looked at."""
    seen = indices if audit.whole else np.intersect1d(indices, audit.indices)
    return np.minimum(audit.width[seen], audit.height[seen])


def found_bad(data: Data, audit: Audit) -> dict[int, str]:
    """Index to reason, of the pictures in a split that cannot be read."""
    used = set(data.used().tolist()) if audit.error else set()
    return {index: reason for index, reason in sorted(audit.error.items()) if index in used}


def require_good(data: Data, audit: Audit) -> None:
    """Raise UserError that names the pictures that cannot be read, up to ten, and counts the others."""
    bad = found_bad(data, audit)
    if bad:
        raise UserError(name_bad(data, bad))


def without_bad(data: Data, audit: Audit) -> Data:
    """The same pictures with those that cannot be read in no split; a note says how many and which."""
    bad = found_bad(data, audit)
    if not bad:
        return data
    out = np.array(list(bad), dtype=np.int64)
    splits = {name: indices[~np.isin(indices, out)] for name, indices in data.splits.items()}
    named = "; ".join(f"{data.pictures.name(index)} ({reason})" for index, reason in list(bad.items())[:SHOWN])
    more = f" and {len(bad) - SHOWN:,} more" if len(bad) > SHOWN else ""
    note = f"left out {count(len(bad), 'picture', 'pictures')} that cannot be read: {named}{more}"
    return replace(data, splits=splits, notes=(*data.notes, note))


def fingerprint(data: Data, audit: Audit) -> str:
    """SHA-256, as hex, over (name, class, digest) of every picture in a split, sorted: the same wherever they lie.

    Where not every picture was looked at, over their index.
    """
    if not audit.whole and isinstance(data.pictures, Indexed):
        return data.pictures.fingerprint()
    used = data.used()
    rows = sorted(
        (os.fsencode(data.pictures.name(index)), os.fsencode(data.label_name(label)), audit.digest[index].tobytes())
        for index, label in zip(used.tolist(), data.labels[used].tolist(), strict=True)
    )
    total = hashlib.sha256()
    for name, label, digest in rows:
        total.update(b"%s\0%s\0%s" % (name, label, digest))
    return total.hexdigest()


@dataclass(frozen=True)
class ChannelStatistics:
    """Mean and standard deviation of each channel in units where white is 1, and how many pictures they are from."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    pictures: int


def channel_statistics(
    data: Data, audit: Audit, indices: Indices, *, exif: bool = True, channels: int = 3, threads: int
) -> ChannelStatistics:
    """Over the first 2,000 (or all) of the pictures in `indices` by digest, each at its own size and of equal weight:

        mean = average over pictures of average over pixels of x / 255
        std  = sqrt(average over pictures of average over pixels of (x / 255)^2 - mean^2)

    For pictures of one size that is the mean and standard deviation of all pixels. Raises UserError naming pictures
    that cannot be read.
    """
    seen = indices if audit.whole else np.intersect1d(indices, audit.indices)
    good = [i for i in seen.tolist() if i not in audit.error]
    sample = sorted(good, key=lambda i: (audit.digest[i].tobytes(), i))[:SAMPLE]
    if not sample:
        raise UserError(f"{data.spec}: no picture to measure")

    def moments(index: int) -> NDArray[np.float64] | BadPicture:
        try:
            x = pixels(data, index, channels, exif).reshape(-1, channels).astype(np.float64) / 255
        except BadPicture as error:
            return error
        return np.stack([x.mean(0), (x * x).mean(0)])

    found = list(in_threads(moments, np.array(sample), threads))
    bad = {index: str(m) for index, m in zip(sample, found, strict=True) if isinstance(m, BadPicture)}
    if bad:
        raise UserError(name_bad(data, bad))
    mean, square = np.mean([m for m in found if isinstance(m, np.ndarray)], axis=0)
    std = np.sqrt(np.maximum(square - mean * mean, 0))
    return ChannelStatistics(tuple(mean.tolist()), tuple(std.tolist()), len(sample))


def pixels(data: Data, index: int, channels: int, exif: bool) -> Pixels:
    """A picture as uint8 (H, W, channels). Raises BadPicture."""
    try:
        picture = data.pictures.read(index)
    except OSError as error:
        raise BadPicture(f"cannot be opened: {error.strerror}") from error
    if isinstance(picture, bytes):
        return decode(picture, channels=channels, exif=exif)
    if picture.shape[2] == channels:
        return picture
    return luma(picture) if channels == 1 else np.repeat(picture, 3, axis=2)

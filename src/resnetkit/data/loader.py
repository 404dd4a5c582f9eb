"""From pictures to batches: the order, the random numbers, and threads that decode ahead.

Order and augmentation are pure functions of (seed, epoch, position). Threads, batch size, a restart or another machine
change nothing of what stands at a position of an epoch.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from resnetkit.data.decode import Jpeg
from resnetkit.data.pictures import Data, Foretold, Indices, Pixels, name_bad
from resnetkit.data.policies import SLOTS
from resnetkit.data.transforms import POLICY, Preprocess, augmented
from resnetkit.errors import BadPicture, UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from resnetkit.recipe import Augment

CHUNK = 32  # pictures per task: long enough that handing it to a thread costs nothing, short enough to balance
FORETOLD = 4 << 30  # bytes of far pictures that a machine fetches ahead: a window of shards of 256 MiB
AHEAD = 3  # batches in the making while one is used
LARGE = 4_000_000  # numbers from which a permutation is made in parts; fewer keep the order that they always had
WINDOW = 16  # shards whose pictures are mixed, where they lie far away
ROW, POLICY_ROW = POLICY, SLOTS  # random numbers per position, multiples of four: Philox gives four per count
ORDER, DRAW, MIX, POLICIES = range(4)  # streams of random numbers that never meet
T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """Pictures (n, size, size, C) uint8 and labels (n,) int64; `indices` says which pictures of the data they are."""

    pictures: Pixels
    labels: Indices
    indices: Indices
    bad: dict[int, str] = field(default_factory=dict)  # index to reason, of those left out

    def to(self, device: torch.device | str) -> tuple[Tensor, Tensor]:
        """Pictures and labels as tensors on a device."""
        import torch  # not above: an exported model answers without torch

        x, y = torch.from_numpy(self.pictures), torch.from_numpy(self.labels)
        if torch.device(device).type == "cuda":  # from other memory the copy waits for what the GPU does
            x, y = x.pin_memory(), y.pin_memory()
        return x.to(device, non_blocking=True), y.to(device, non_blocking=True)


def stream(kind: int, seed: int, epoch: int) -> np.random.Philox:
    """A counter-based source of random bits, which can be entered anywhere (`advance`)."""
    low, high = ((seed << 2) | kind) % 2**64, (seed >> 62 << 63) | epoch  # a seed has up to 63 bits
    return np.random.Philox(key=np.array([low, high], dtype=np.uint64))


def order(seed: int, epoch: int, n: int) -> Indices:
    """The permutation of 0 … n - 1 in which an epoch shows its pictures."""
    source = np.random.Generator(stream(ORDER, seed, epoch))
    return source.permutation(n) if n <= LARGE else scattered(source, n)


def scattered(source: np.random.Generator, n: int) -> Indices:
    """A permutation of 0 … n - 1, all equally likely, made from parts that fit into a processor's cache.

    Each number draws one of 256 parts, and each part is shuffled (Rao 1961, Sandelius 1962).
    """
    part = source.integers(0, 256, n, dtype=np.uint8)
    result: Indices = np.argsort(part, kind="stable")  # of bytes, which numpy sorts by counting
    at = 0
    for size in np.bincount(part, minlength=256).tolist():
        result[at : at + size] = source.permutation(result[at : at + size])
        at += size
    return result


def windowed(seed: int, epoch: int, sizes: Sequence[int], window: int) -> Indices:
    """A permutation of 0 … sum(sizes) - 1 that reads shards of these sizes, one after the other in the pool, together.

    The shards are shuffled and taken `window` at a time; the pictures of such a group are shuffled among themselves. So
    no more than `window` shards are begun and not yet read to their end, wherever an epoch stands.
    """
    source = np.random.Generator(stream(ORDER, seed, epoch))
    begin = np.cumsum([0, *sizes])
    shards = source.permutation(len(sizes)).tolist()
    result = np.empty(int(begin[-1]), np.int64)
    at = 0
    for first in range(0, len(shards), window):
        group = [np.arange(begin[k], begin[k + 1]) for k in shards[first : first + window]]
        together = source.permutation(np.concatenate(group))
        result[at : at + len(together)] = together
        at += len(together)
    return result


def shown(data: Data, indices: Indices, seed: int, epoch: int) -> Indices:
    """`indices`, which ascend, in the order in which an epoch shows them."""
    if data.shards is None:
        places = order(seed, epoch, len(indices))
    else:
        ends = np.append(np.searchsorted(indices, data.shards), len(indices))
        sizes = np.diff(ends)
        places = windowed(seed, epoch, sizes[sizes > 0].tolist(), WINDOW)  # shards of another split are none of these
    if len(indices) and indices[-1] - indices[0] == len(indices) - 1:  # no gaps: looking ten million up takes long
        places += indices[0]
        return places
    return indices[places]


def gathered(places: Indices, batch: int) -> Indices:
    """The same with the pictures of each batch in the pool's order; what is left after the last batch stays.

    Machines that divide each batch among them then read a part of a window's shards each, not all of them.
    """
    whole = len(places) // batch * batch
    rows = np.sort(places[:whole].reshape(-1, batch), axis=1)
    return np.concatenate([rows.ravel(), places[whole:]])


def evenly(labels: Indices, seed: int, epoch: int) -> Indices:
    """As many places among 0 … n - 1 as there are labels (n,), with every class in them as often as any other, to one.

    Of a class with more pictures than that, other ones are shown in each epoch; those of one with fewer are all shown
    as often as each other, to one.
    """
    source = np.random.Generator(stream(ORDER, seed, epoch).jumped())
    members = np.argsort(labels, kind="stable")
    counts = np.unique(labels, return_counts=True)[1]
    quota = np.full(len(counts), len(labels) // len(counts))
    quota[source.permutation(len(counts))[: len(labels) % len(counts)]] += 1
    parts = []
    for own, wanted in zip(np.split(members, np.cumsum(counts)[:-1]), quota.tolist(), strict=True):
        times, rest = divmod(wanted, len(own))
        parts += [np.tile(own, times), source.permutation(own)[:rest]]
    return source.permutation(np.concatenate(parts))


def repeated(places: Indices, times: int) -> Indices:
    """Each of the first places `times` times in a row, as many as there were: an epoch then shows n / times pictures.

    Repeated augmentation (arXiv 1902.05509) as timm's RepeatAugSampler: the places of one picture, each with random
    numbers of its own, stand in one batch, or in two where a batch ends among them.
    """
    n = len(places)
    return places if times == 1 else np.repeat(places[: -(-n // times)], times)[:n]


def side_at(augment: Augment, progress: float, size: int) -> int:
    """The side of the training input at a share `progress` of the training; `size` where the recipe names none."""
    return next((side for share, side in reversed(augment.sizes) if progress >= share), size)


def draws(seed: int, epoch: int, start: int, count: int) -> NDArray[np.float64]:
    """The random numbers of positions start … start + count - 1: (count, DRAWS), uniform in [0, 1)."""
    parts = []
    for kind, row in ((DRAW, ROW), (POLICIES, POLICY_ROW)):  # a longer row would have changed every picture there was
        source = stream(kind, seed, epoch)
        source.advance(start * row // 4)
        parts.append(np.random.Generator(source).random((count, row)))
    return np.concatenate(parts, axis=1)


def mixing(seed: int, epoch: int, step: int) -> np.random.Generator:
    """The generator for what concerns a whole batch: mixup and cutmix."""
    return np.random.Generator(stream(MIX, seed, epoch).jumped(step + 1))


def default_threads() -> int:
    """One for each core this process may use, sixteen at most."""
    return min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


class Reader:
    """Decoded pictures of `data` by index, with all of them kept in memory when they fit.

    here  processes on this machine that read as this one does
    """

    def __init__(self, data: Data, preprocess: Preprocess, *, threads: int, keep: bool = False, here: int = 1) -> None:
        self.data, self.preprocess, self.threads, self.here = data, preprocess, threads, here
        self.kept: list[Pixels | None] | None = [None] * len(data.pictures) if keep else None

    def at(self, size: int) -> Reader:
        """A reader of the same pictures, kept in the same memory, for input of another side."""
        if size == self.preprocess.size:
            return self
        other = Reader(self.data, self.preprocess.at(size), threads=self.threads, here=self.here)
        other.kept = self.kept
        return other

    def __call__(self, index: int) -> Pixels:
        """The picture as uint8 (H, W, C), before resizing. Raises BadPicture."""
        picture = self.kept[index] if self.kept is not None else None
        if picture is None:  # two threads may both decode it once; both get the same pixels
            picture = self.preprocess.load(self.read(index))
            if self.kept is not None:
                self.kept[index] = picture
        return picture

    def open(self, index: int) -> Pixels | Jpeg:
        """The picture for one crop of it: a JPEG may still be encoded, where none are kept. Raises BadPicture."""
        return self(index) if self.kept is not None else self.preprocess.open(self.read(index))

    def read(self, index: int) -> bytes | Pixels:
        """What the data have for it. Raises BadPicture."""
        try:
            return self.data.pictures.read(index)
        except OSError as error:
            raise BadPicture(f"cannot be opened: {error.strerror}") from None


def training_batches(
    reader: Reader,
    indices: Indices,
    augment: Augment,
    *,
    seed: int,
    epoch: int,
    batch: int,
    start: int = 0,
    share: tuple[int, int] | None = None,
    sampling: str = "uniform",
) -> Generator[Batch, None, None]:
    """The epoch's batches from number `start` on, all of exactly `batch` pictures, or of each its part `share`.

    share    begin and end within a batch, for a process that works on it together with others
    sampling "uniform": each picture once; "balanced": `evenly`

    The remainder of an epoch (fewer than `batch` pictures, other ones each epoch) is left out.
    Raises UserError naming the pictures of a batch that cannot be read.
    """
    if sampling == "balanced":
        order_of_epoch = indices[evenly(reader.data.labels[indices], seed, epoch)]
    else:
        order_of_epoch = shown(reader.data, indices, seed, epoch)
    permuted = repeated(order_of_epoch, augment.repeats)
    if reader.data.shards is not None:
        permuted = gathered(permuted, batch)

    def make(out: Pixels, first: int) -> dict[int, str]:
        table = draws(seed, epoch, first, len(out))
        bad = {}
        for row, index in enumerate(permuted[first : first + len(out)].tolist()):
            try:
                out[row] = augmented(reader.open(index), reader.preprocess, augment, table[row])
            except BadPicture as error:
                bad[index] = str(error)
        return bad

    begin, end = share or (0, batch)
    starts = range(start * batch, len(indices) - batch + 1, batch)
    for made in run_ahead(reader, permuted, make, [(first + begin, end - begin) for first in starts]):
        if made.bad:
            raise UserError(name_bad(reader.data, made.bad))
        yield made


def evaluation_batches(reader: Reader, indices: Indices, *, batch: int) -> Iterator[Batch]:
    """Every picture once, in the order given, the last batch as short as it comes; bad pictures left out and named."""

    def make(out: Pixels, first: int) -> dict[int, str]:
        bad = {}
        for row, index in enumerate(indices[first : first + len(out)].tolist()):
            try:
                out[row] = reader.preprocess.fit(reader.open(index))
            except BadPicture as error:
                bad[index] = str(error)
        return bad

    spans = [(first, min(batch, len(indices) - first)) for first in range(0, len(indices), batch)]
    for made in run_ahead(reader, indices, make, spans):
        if made.bad:
            good = np.array([index not in made.bad for index in made.indices.tolist()], dtype=bool)
            made = Batch(made.pictures[good], made.labels[good], made.indices[good], made.bad)
        yield made


def evaluation_views(
    reader: Reader, indices: Indices, *, count: int, views: Callable[[Pixels], list[Pixels]]
) -> Iterator[tuple[Indices, list[list[Pixels]], dict[int, str]]]:
    """Every picture once, in the order given, as the `views` that are made of it, which may have any shapes.

    Yields for every `count` pictures: the indices of those that could be read, the views of each, the bad ones.
    """

    def make(index: int) -> list[Pixels] | str:
        try:
            return views(reader(index))
        except BadPicture as error:
            return str(error)

    chunks = [indices[first : first + count].tolist() for first in range(0, len(indices), count)]

    def groups() -> Iterator[list[Callable[[], list[Pixels] | str]]]:
        for chunk in chunks:
            yield [partial(make, index) for index in chunk]

    for chunk, made in zip(chunks, in_threads(reader.threads, groups()), strict=True):
        bad = {index: found for index, found in zip(chunk, made, strict=True) if isinstance(found, str)}
        good = [index for index in chunk if index not in bad]
        yield np.array(good, dtype=np.int64), [found for found in made if not isinstance(found, str)], bad


def run_ahead(
    reader: Reader,
    indices: Indices,
    make: Callable[[Pixels, int], dict[int, str]],
    spans: list[tuple[int, int]],
) -> Iterator[Batch]:
    """Batches for (first, count) spans in order, `AHEAD` of them in the making; `make` fills rows in a thread."""
    shape = (reader.preprocess.size, reader.preprocess.size, reader.preprocess.channels)
    labels = reader.data.labels
    under_way: deque[tuple[int, Pixels]] = deque()

    def groups() -> Iterator[list[Callable[[], dict[int, str]]]]:
        for first, count in foretold(reader, indices, spans):
            out = np.empty((count, *shape), dtype=np.uint8)
            under_way.append((first, out))
            yield [partial(make, out[at : at + CHUNK], first + at) for at in range(0, count, CHUNK)]

    for reasons in in_threads(reader.threads, groups()):
        first, out = under_way.popleft()
        bad = {index: reason for found in reasons for index, reason in found.items()}
        here = indices[first : first + len(out)]
        yield Batch(out, labels[here].astype(np.int64), here, bad)


def foretold(reader: Reader, indices: Indices, spans: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The spans; far pictures are told of those that come later, so that they are there by then."""
    pictures, kept = reader.data.pictures, reader.kept
    if not (reader.data.far and isinstance(pictures, Foretold) and spans):
        yield from spans
        return
    some = indices[:: max(1, len(indices) // 100)].tolist()
    mean = sum(pictures.size(i) for i in some) // len(some)
    later = iter(spans)

    def tell(batches: int) -> None:
        for first, count in islice(later, batches):
            coming = indices[first : first + count]
            wanted = coming if kept is None else np.array([i for i in coming.tolist() if kept[i] is None], np.int64)
            if len(wanted):
                pictures.soon(wanted)

    tell(FORETOLD // reader.here // max(1, mean * spans[0][1]))
    try:
        for span in spans:
            tell(1)
            yield span
    finally:
        pictures.soon(indices[:0])


def in_threads(threads: int, groups: Iterator[list[Callable[[], T]]]) -> Iterator[list[T]]:
    """What the tasks of each group return, group by group; `AHEAD` groups are under way while one is used."""
    under_way: deque[list[Future[T]]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    def begin() -> None:
        under_way.extend([pool.submit(task) for task in group] for group in islice(groups, 1))

    try:
        for _ in range(AHEAD):
            begin()
        while under_way:
            results = [task.result() for task in under_way.popleft()]
            begin()
            yield results
    finally:
        pool.shutdown(wait=True, cancel_futures=True)

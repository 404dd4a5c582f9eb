"""Models that answer: opened, warmed up, found by name and version, and changed without anybody noticing."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock

import numpy as np

from resnetkit.about import MODEL_FILE, About, model_path
from resnetkit.engines import files
from resnetkit.engines.opening import Opened, open_engine
from resnetkit.engines.samples import sample_pictures
from resnetkit.errors import UserError
from resnetkit.prediction import BATCH, ranked
from resnetkit.serving.batching import Admission, Batcher
from resnetkit.serving.limits import Limits, Refused

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
SIZES = (1, 2, 4, 8, BATCH)  # batches that are tried while warming up
RUNS = 3  # of each
NEAR = 0.97  # of the best rate: a larger batch that has so much is taken; only where many wait does it fill
SHARE = 0.25  # of the latency that one batch may take

Say = Callable[[str], None]
Told = Callable[[str, int, float], None]  # model, pictures, seconds


@dataclass(frozen=True)
class Place:
    """A model as it was asked for: its name, and where it lies."""

    name: str
    path: Path


class Hosted:
    """One version of a model, for as long as somebody uses it.

    version  the beginning of its file's SHA-256: equal versions give equal answers
    """

    def __init__(self, place: Place, opened: Opened, version: str, batcher: Batcher, admission: Admission) -> None:
        self.place, self.opened, self.version = place, opened, version
        self.batcher, self.admission = batcher, admission
        self.users, self.retired, self.lock = 0, False, Lock()

    @property
    def name(self) -> str:
        return self.place.name

    @property
    def about(self) -> About:
        return self.opened.about

    def enter(self) -> bool:
        """Use it; False where it is no longer there for new ones."""
        with self.lock:
            if self.retired:
                return False
            self.users += 1
            return True

    def leave(self) -> None:
        with self.lock:
            self.users -= 1
            last = self.retired and not self.users
        if last:
            self.batcher.close(wait=False)

    def retire(self) -> None:
        """Ends when its last user has left."""
        with self.lock:
            self.retired = True
            unused = not self.users
        if unused:
            self.batcher.close(wait=False)


def places(texts: Sequence[str]) -> list[Place]:
    """`MODEL` or `NAME=MODEL`; without a name it is that of the run folder or file. Raises UserError."""
    found = []
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or not NAME.fullmatch(name) or Path(text).exists():
            path = text
            file = model_path(path)
            name = file.resolve().parent.name if file.name == MODEL_FILE else file.stem
            name = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:64]
        if not NAME.fullmatch(name):
            raise UserError(f"{text}: has no name that fits into an address; give it one: NAME={path}")
        model_path(path)
        found.append(Place(name, Path(path)))
    return found


def host(
    place: Place, *, engine: str = "auto", limits: Limits, told: Told | None = None, say: Say | None = None
) -> Hosted:
    """Open a model and warm it up. Raises UserError."""
    source = files.peek(model_path(place.path))
    opened = open_engine(place.path, engine, batch=BATCH, say=say)
    if files.peek(model_path(place.path)).digest != source.digest:
        raise UserError(f"{place.path}: another file took its place while it was opened; load it once more")
    largest, seconds = warm(opened, limits.latency, str(place.path))
    batcher = Batcher(opened.run, largest, None if told is None else partial(told, place.name))
    admission = Admission(limits.latency, limits.queue, largest, seconds)
    return Hosted(place, opened, source.digest[:12], batcher, admission)


def warm(opened: Opened, latency: float, where: str) -> tuple[int, float]:
    """The batch to answer in and its seconds per picture: the largest that is about as fast as the best one, of those
    that leave time to wait for it. First runs are slow and count for nothing. Raises UserError for a broken model."""
    preprocess = opened.about.preprocess
    pictures = sample_pictures(4, preprocess.size, preprocess.channels)
    seconds: dict[int, float] = {}
    for size in SIZES:
        batch = np.resize(pictures, (size, *pictures.shape[1:]))
        ranked(opened.run(batch), opened.about, 1, where)
        taken = []
        for _ in range(RUNS):
            begin = time.perf_counter()
            opened.run(batch)
            taken.append(time.perf_counter() - begin)
        if seconds and statistics.median(taken) > SHARE * latency:
            break
        seconds[size] = statistics.median(taken) / size
    best = min(seconds.values())
    size = next(size for size, each in reversed(seconds.items()) if NEAR * each <= best)
    return size, seconds[size]


class Models:
    """Every model and version that answers. What changes is one reference, so nobody sees half a change."""

    def __init__(self, wanted: Iterable[Place], load: Callable[[Place], Hosted]) -> None:
        """Raises UserError where one cannot be opened, or is there twice."""
        self.wanted, self.load = tuple(wanted), load
        self.changing = Lock()
        self.table: dict[str, dict[str, Hosted]] = {}
        self.reload()

    def __iter__(self) -> Iterator[Hosted]:
        return iter([hosted for versions in self.table.values() for hosted in versions.values()])

    def find(self, name: str | None = None, version: str | None = None) -> Hosted:
        """The model of that name, or the only or first one; its version, or the last one. Raises Refused."""
        table = self.table
        if name is None:
            name = next(iter(table))
        if name not in table:
            raise Refused(404, f"there is no model {name[:64]!r}", reason="model")
        if version is None:
            version = next(reversed(table[name]))
        if version not in table[name]:
            raise Refused(404, f"model {name} has no version {version[:64]!r}", reason="model")
        return table[name][version]

    def use(self, name: str | None = None, version: str | None = None) -> Hosted:
        """As `find`, and entered; it has to be left. Raises Refused."""
        while True:
            hosted = self.find(name, version)
            if hosted.enter():
                return hosted

    def reload(self, name: str | None = None) -> list[str]:
        """Look at the files again, and take those that are others; sentences on what changed.

        Raises UserError where one cannot be opened; then all stay as they are.
        """
        with self.changing:
            before = {
                (each.place, each.version): each for versions in self.table.values() for each in versions.values()
            }
            made: list[Hosted] = []
            table: dict[str, dict[str, Hosted]] = {}
            try:
                for place in self.wanted:
                    hosted = self.kept(place, name) or self.opened(place, before, made)
                    if hosted.version in table.setdefault(place.name, {}):
                        raise UserError(f"{place.name}: {place.path} is a version that is already there")
                    table[place.name][hosted.version] = hosted
            except BaseException:
                for hosted in made:
                    hosted.retire()
                raise
            self.table = table
            staying = {id(each) for versions in table.values() for each in versions.values()}
            for hosted in before.values():
                if id(hosted) not in staying:
                    hosted.retire()
            return [
                f"{each.name}: version {each.version}, in batches of {each.batcher.waiting.largest}" for each in made
            ]

    def kept(self, place: Place, name: str | None) -> Hosted | None:
        """A model that is not to be looked at."""
        if name is None or place.name == name:
            return None
        return next(each for each in self.table[place.name].values() if each.place == place)

    def opened(self, place: Place, before: dict[tuple[Place, str], Hosted], made: list[Hosted]) -> Hosted:
        digest = files.read(model_path(place.path)).digest
        known = before.get((place, digest[:12]))
        if known is not None:
            return known
        hosted = self.load(place)
        made.append(hosted)
        return hosted

    def close(self) -> None:
        """Answer what waits, and end."""
        for versions in self.table.values():
            for hosted in versions.values():
                hosted.batcher.close()

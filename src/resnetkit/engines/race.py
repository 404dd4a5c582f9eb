"""Engines timed side by side, in processes of their own and in turns: A B C, B C A, C A B.

Turns, because a machine is faster or slower from one minute to the next; the rotation, because the one that comes after
a certain other one may find a warmer processor. The time that a quarter of the runs keep to decides: what else a
machine does makes runs slower, never faster, and some engines suffer more from it than others. An engine that does not
mean the same network as the file's own, on pictures that everybody has, is out, however fast.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

from resnetkit.engines.engine import Logits, version
from resnetkit.engines.samples import agree, difference
from resnetkit.engines.worker import Worker
from resnetkit.errors import UserError

TIE = 0.02  # share of the best rate
QUIET = 0.25  # of the runs are taken to be those that nothing disturbed
CLOSE = 0.2  # behind the best, so far, and an engine may still win
START_SECONDS = 120.0  # that an engine may take to load
SAMPLES = 4  # pictures whose answers are compared
TURN, RUNS = 0.25, 50  # a turn is so many seconds long, of so many runs at most, and of one at least
REST = 0.15  # between two turns: so long may threads of ONNX Runtime spin on, waiting for more work
Say = Callable[[str], None]


@dataclass(frozen=True)
class Entry:
    """An engine in a race: the file, and what the engine loads in its place, if it does not load the file itself."""

    engine: str
    path: Path
    ready: Path | None = None


@dataclass(frozen=True)
class Lane:
    """What came of an engine in a race.

    load        seconds to import its library and to load the file
    memory      bytes that it took, loaded; `peaks`: at most while a batch size ran; None where nobody tells
    seconds     of each run, by batch size, in the order in which they were measured
    difference  of its answers from those of the file's own engine, as a share of the largest
    error       why it is out, in a sentence; None: it is not
    """

    engine: str
    version: str | None
    load: float | None = None
    memory: int | None = None
    peaks: dict[int, int | None] = field(default_factory=dict)
    seconds: dict[int, list[float]] = field(default_factory=dict)
    difference: float | None = None
    error: str | None = None

    def rate(self, batch: int) -> float:
        """Pictures a second, at the median."""
        return batch / median(self.seconds[batch])

    def best(self, batch: int) -> float:
        """Pictures a second in the runs that nothing disturbed."""
        ordered = sorted(self.seconds[batch])
        return batch / ordered[math.ceil(QUIET * (len(ordered) - 1))]

    def once(self, batch: int) -> float:
        """Seconds to load and to answer one batch."""
        return (self.load or 0.0) + batch / self.best(batch)

    def slowest(self, batch: int, share: float = 0.99) -> float:
        """Seconds that this share of the runs did not exceed; of fewer than a hundred runs the longest is that."""
        ordered = sorted(self.seconds[batch])
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they stand in JSON."""
        return asdict(self)


def fastest(lanes: Iterable[Lane], batch: int, *, once: bool = False) -> str:
    """The engine that is fastest for a batch size; of `once`, with loading. Raises UserError when none is in.

    Where several are within `TIE` of it, which no race tells apart, the one that takes least memory.
    """
    lanes = list(lanes)
    left = [lane for lane in lanes if lane.error is None and lane.seconds.get(batch)]
    if not left:
        reasons = "; ".join(f"{lane.engine}: {lane.error or 'not timed'}" for lane in lanes)
        raise UserError(f"no engine runs this model here ({reasons})")
    if once:
        return min(left, key=lambda lane: lane.once(batch)).engine
    best = max(lane.best(batch) for lane in left)
    tied = [lane for lane in left if lane.best(batch) >= best * (1 - TIE)]
    return min(tied, key=lambda lane: (lane.memory is None, lane.peaks.get(batch) or lane.memory or 0)).engine


def race(
    entries: Sequence[Entry],
    batches: Iterable[int],
    *,
    threads: int,
    seconds: float = 10.0,
    rounds: int = 3,
    say: Say | None = None,
) -> list[Lane]:
    """A lane for each entry, in order. The first is the file's own engine, which the others are compared with.

    seconds  for each batch size, loading not included; `rounds` of turns are made in any case
    say      is told in a few words what is being done
    """
    runners = [Runner(entry) for entry in entries]
    say = say or (lambda _: None)
    try:
        for runner in runners:
            say(f"loading {runner.name}")
            runner.start(threads)
        compare(runners)
        for batch in sorted(set(batches)):  # upwards, so that the peak of one is not the rest of a larger one
            take_turns(runners, batch, seconds, rounds, say)
    finally:
        for runner in runners:
            runner.close()
    return [runner.lane() for runner in runners]


class Runner:
    """One engine while it races. What its worker cannot do becomes its error, and it is out."""

    def __init__(self, entry: Entry) -> None:
        self.entry, self.name = entry, entry.engine
        self.worker: Worker | None = None
        self.found: dict[str, Any] = {}
        self.seconds: dict[int, list[float]] = {}
        self.peaks: dict[int, int | None] = {}
        self.precision = "fp32"

    def start(self, threads: int) -> None:
        try:
            self.worker = Worker(threads)
            loaded = self.worker.load(self.name, self.entry.path, self.entry.ready, threads, START_SECONDS)
        except UserError as error:
            self.fail(error)
            return
        self.found |= {"load": loaded["seconds"], "memory": loaded["memory"]}
        self.precision = str(loaded["precision"])

    def answers(self) -> Logits | None:
        if self.worker is None:
            return None
        try:
            return self.worker.answers(SAMPLES)
        except UserError as error:
            self.fail(error)
            return None

    def run(self, batch: int, times: int) -> list[float]:
        """Seconds of each run; none of an engine that is out."""
        if self.worker is None:
            return []
        try:
            done = self.worker.ask({"run": batch, "times": times})
        except UserError as error:
            self.fail(error)
            return []
        self.peaks[batch] = done["peak"]
        seconds: list[float] = done["seconds"]
        return seconds

    def turn(self, batch: int, last: float) -> float:
        """Some runs that count; seconds of the last one, or `last`, that of the turn before."""
        times = min(RUNS, max(1, round(TURN / last)))
        # The first of several finds cold caches and sleeping threads, after the others' turns: it is left out.
        seconds = self.run(batch, times + (times > 1))
        self.seconds.setdefault(batch, []).extend(seconds[-times:])
        return seconds[-1] if seconds else last

    def fail(self, error: UserError) -> None:
        self.found["error"] = str(error)
        self.close()

    def close(self) -> None:
        if self.worker is not None:
            self.worker.close()
            self.worker = None

    def lane(self) -> Lane:
        return Lane(self.name, version(self.name), seconds=self.seconds, peaks=self.peaks, **self.found)


def compare(runners: Sequence[Runner]) -> None:
    """Take out who does not answer as the first one does; where that one failed, as the first that answers."""
    reference: Logits | None = None
    for runner in runners:
        answers = runner.answers()
        if answers is None:
            continue
        reference = answers if reference is None else reference
        found = difference(reference, answers)
        runner.found["difference"] = found if found < float("inf") else None  # which JSON does not have
        wrong = agree(reference, answers, runner.precision)
        if wrong is not None:
            runner.fail(UserError(wrong))


def take_turns(runners: Sequence[Runner], batch: int, seconds: float, rounds: int, say: Say) -> None:
    """As many rounds as fit into `seconds`, each engine in its turn, after a run of each that does not count.

    After half the time only those go on that may still win, so that what decides has the most runs.
    """
    end, longest = time.monotonic() + seconds, 0.0
    last: dict[str, float] = {}
    close: list[Runner] = []
    for runner in runners:
        if warm := runner.run(batch, 1):
            last[runner.name] = warm[0]
    for number in count():
        begin = time.monotonic()
        if all(runner.worker is None for runner in runners) or (number >= rounds and begin + longest > end):
            return
        shift = number % len(runners)
        for runner in [*runners[shift:], *runners[:shift]]:
            if runner.worker is not None and (number < rounds or begin < end - seconds / 2 or runner in close):
                say(f"batches of {batch}, round {number + 1}: {runner.name}")
                time.sleep(REST)
                last[runner.name] = runner.turn(batch, last[runner.name])
        longest = max(longest, time.monotonic() - begin)
        close = contenders(runners, batch)


def contenders(runners: Sequence[Runner], batch: int) -> list[Runner]:
    """Those whose best runs are not far behind the best of all."""
    rates = [(runner.lane().best(batch), runner) for runner in runners if runner.seconds.get(batch)]
    best = max((rate for rate, _ in rates), default=0.0)
    return [runner for rate, runner in rates if rate >= best * (1 - CLOSE)]

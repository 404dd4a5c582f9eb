"""Pictures of many requests as batches of one engine, and how many may wait. Knows nothing of HTTP.

An engine is fastest with many pictures at a time, and whoever asks has one. So while the engine works, what comes in
gathers; when it is free, it takes what is there, and waits for more only `WAIT` seconds. The larger the load, the
larger the batches: there is nothing to tune.

What may wait is decided when it comes in (`Admission`), by how long those before it took. A queue that is longer than
what is answered in time helps nobody: everybody in it is late.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Logits = NDArray[np.float32]

WAIT = 0.002  # seconds that an idle engine waits for a second picture
AIM = 0.7  # share of the latency that is filled: what is foreseen is a mean, and the bound is meant for nearly all
MEMORY = 0.1  # weight of the newest observation


class Admission:
    """Whether pictures can be answered within `latency` seconds, from how long others took. For one thread.

    Where n pictures are under way, the last one is done after n times the seconds that each adds (Little's law), which
    is observed from whole requests: so decoding, the engine, and whatever else the machine does are all in it. Too few
    pictures to fill a batch only tell that it is not slower.
    """

    def __init__(self, latency: float, most: int, batch: int, seconds: float) -> None:
        self.latency, self.most, self.batch = latency, most, batch
        self.seconds = seconds  # per picture
        self.under_way = 0

    def admit(self, n: int) -> float | None:
        """None where n more pictures are admitted; else seconds after which it is worth asking again.

        Where nothing is under way everything is admitted: something has to be, to learn that it is fast again.
        """
        after = self.under_way + n
        foreseen = after * self.seconds
        if self.under_way and (after > self.most or foreseen > AIM * self.latency):
            return max(foreseen - AIM * self.latency, self.seconds * n)
        self.under_way = after
        return None

    def done(self, n: int, ahead: int, seconds: float | None) -> None:
        """n pictures are no longer under way. They were answered after so many seconds, with `ahead` under way when
        they were admitted, themselves included; None: they were not answered."""
        self.under_way -= n
        if seconds is not None and (ahead >= self.batch or seconds / ahead < self.seconds):
            self.seconds += MEMORY * (seconds / ahead - self.seconds)


@dataclass(eq=False)
class Job:
    """Pictures of one request, and what became of them so far."""

    pictures: Pixels
    since: float
    future: Future[Logits] = field(default_factory=Future)
    taken: int = 0  # rows that are in a batch, or were
    parts: list[Logits] = field(default_factory=list)


Piece = tuple[Job, int, int]  # rows of a job


class Waiting:
    """The queue: what comes first is taken first, and jobs are cut where a batch is full."""

    def __init__(self, largest: int) -> None:
        self.largest = largest
        self.jobs: deque[Job] = deque()

    def add(self, job: Job) -> None:
        self.jobs.append(job)

    @property
    def rows(self) -> int:
        return sum(len(job.pictures) - job.taken for job in self.jobs)

    def seconds_left(self, now: float) -> float | None:
        """Until a batch should be taken: 0 where one is full or has waited; None where nothing waits."""
        if not self.jobs:
            return None
        first = self.jobs[0]
        if first.taken or self.rows >= self.largest:
            return 0.0
        return max(0.0, first.since + WAIT - now)

    def take(self) -> list[Piece]:
        """The pieces of the next batch. Jobs that were given up meanwhile are left out."""
        batch: list[Piece] = []
        room = self.largest
        while room and self.jobs:
            job = self.jobs[0]
            if job.future.done() or (not job.taken and not job.future.set_running_or_notify_cancel()):
                self.jobs.popleft()
                continue
            start, stop = job.taken, min(len(job.pictures), job.taken + room)
            batch.append((job, start, stop))
            job.taken, room = stop, room - (stop - start)
            if stop == len(job.pictures):
                self.jobs.popleft()
        return batch


class Batcher:
    """An engine with a queue before it and a thread of its own.

    run      uint8 (N, size, size, C) to logits float32 (N, classes), called by that thread alone
    largest  pictures in a batch, at most
    told     is called with the size and the seconds of each batch, by that thread
    """

    def __init__(
        self, run: Callable[[Pixels], Logits], largest: int, told: Callable[[int, float], None] | None = None
    ) -> None:
        self.run, self.told = run, told
        self.waiting = Waiting(largest)
        self.changed = threading.Condition()
        self.closed = False
        self.thread = threading.Thread(target=self.work, name="engine", daemon=True)
        self.thread.start()

    def submit(self, pictures: Pixels) -> Future[Logits]:
        """Logits (n, classes) of n >= 1 pictures, when they are there; whoever cancels gives them up.

        Raises RuntimeError once it is closed.
        """
        job = Job(pictures, time.monotonic())
        with self.changed:
            if self.closed:
                raise RuntimeError("closed")
            self.waiting.add(job)
            self.changed.notify()
        return job.future

    def close(self, *, wait: bool = True) -> None:
        """Take no more; what waits is still answered. May be called twice."""
        with self.changed:
            self.closed = True
            self.changed.notify()
        if wait:
            self.thread.join()

    def work(self) -> None:
        while batch := self.next_batch():
            self.answer(batch)

    def next_batch(self) -> list[Piece]:
        """Empty when there will be none any more."""
        with self.changed:
            while True:
                left = self.waiting.seconds_left(time.monotonic())
                if left == 0.0 or (left is not None and self.closed):
                    if batch := self.waiting.take():
                        return batch
                elif left is None and self.closed:
                    return []
                else:
                    self.changed.wait(left)

    def answer(self, batch: list[Piece]) -> None:
        rows = [job.pictures[start:stop] for job, start, stop in batch]
        pictures = rows[0] if len(rows) == 1 else np.concatenate(rows)
        begin = time.perf_counter()
        try:
            logits = self.run(pictures)
            if len(logits) != len(pictures):
                raise ValueError(f"{len(logits)} answers to {len(pictures)} pictures")
        except Exception as error:  # whoever asked gets it; the next batch may be another matter
            for job, _, _ in batch:
                if not job.future.done():
                    job.future.set_exception(error)
            return
        if self.told is not None:
            self.told(len(pictures), time.perf_counter() - begin)
        at = 0
        for job, start, stop in batch:
            job.parts.append(logits[at : at + stop - start])
            at += stop - start
            if stop == len(job.pictures) and not job.future.done():
                job.future.set_result(job.parts[0] if len(job.parts) == 1 else np.concatenate(job.parts))

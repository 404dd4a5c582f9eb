"""Training with a backbone that does not learn: every picture is embedded once, then the dense layer is fitted.

A loop as `loop` has it, with one step over all pictures instead of many over a batch. Stopped while it embeds, it goes
on from the vectors that are kept (`vectors`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from resnetkit import runs
from resnetkit.atomic import write_json
from resnetkit.data.audit import Audit
from resnetkit.data.loader import Reader
from resnetkit.data.pictures import Data
from resnetkit.events import Embedding, EpochDone, Found, Progress
from resnetkit.head import Head, fit_head
from resnetkit.loop import Loop, State, stop_signals
from resnetkit.resolve import Resolved
from resnetkit.vectors import Vectors, embedded

HEAD = "head.json"  # how the dense layer was found


class FrozenLoop(Loop):
    """One run whose backbone does not learn, in its folder."""

    def __init__(self, folder: Path, resolved: Resolved, data: Data, reader: Reader, state: State, audit: Audit):
        super().__init__(folder, resolved, data, reader, state)
        self.digests = audit.digest

    def run(self) -> Iterator[Embedding | Found | Progress | EpochDone]:
        """Embed, fit, and put the dense layer into the network. Raises Stopped on SIGINT or SIGTERM."""
        state = self.state
        if state.step == self.steps:
            return
        began = time.monotonic()
        with stop_signals() as stop:
            table = yield from self.vectors(stop)
        labels = self.data.labels[self.data.splits["train"]].astype("int64")
        head = fit_head(
            table,
            labels,
            len(self.data.classes),
            self.recipe.optim,
            steps=self.steps,
            seed=self.recipe.run.seed,
            balance=self.objective.balance,
        )
        with torch.no_grad():
            state.network.fc.weight.copy_(head.weight)
            state.network.fc.bias.copy_(head.bias)
        state.step = self.steps
        yield Found((str(head),))
        yield self.log(head, len(labels), time.monotonic() - began)

    def vectors(self, stop: list[int]) -> Generator[Embedding, None, Vectors]:
        """The vectors of the training pictures (n, d)."""
        train = self.data.splits["train"]
        network = self.state.network
        table = np.empty((len(train), network.fc.in_features), np.float32)
        with contextlib.closing(embedded(network, self.reader, train, self.digests, table)) as parts:
            for done in parts:
                yield Embedding(done, len(train))
                if stop:
                    break
        if stop:
            self.stop(stop[0])
        return table

    def log(self, head: Head, n: int, seconds: float) -> EpochDone:
        """Write the log's only line, and how the dense layer was found."""
        speed = n / max(seconds, 1e-9)
        line = EpochDone(1, 1, self.steps, 1.0, head.loss, head.correct / n, seconds, speed, None)
        about = {name: getattr(head, name) for name in ("weight_decay", "iterations", "loss", "correct")}
        with runs.resumable(self.folder):
            runs.append_log(self.folder, asdict(line))
            write_json(self.folder / HEAD, {**about, "n": n, "tried": {str(k): v for k, v in head.tried.items()}})
        return line

"""Who of several processes is gone: each counts up once a second in a store that all of them reach.

Counts are compared with what they were, never the clocks of two machines.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

BEAT = 1.0  # seconds between two counts
SILENT = 15.0  # a process that does not count for so long is gone
BROKEN = 4.0  # the same, where a connection has just broken


class Pulse:
    """Counts in the store while this process lives, in a thread with a connection of its own.

    failed   whether another process has said in the store that it failed
    """

    def __init__(self, store: Store, rank: int) -> None:
        self.store, self.key, self.calls, self.failed = store, f"beat/{rank}", 0, False
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.run, name="pulse", daemon=True)
        self.thread.start()

    def run(self) -> None:
        count = 0
        while True:
            count += 1
            with contextlib.suppress(RuntimeError):  # the store is away; whoever needs it will say so
                self.store.set(self.key, f"{count} {self.calls}")
                self.failed = self.store.check(["failed"])
            if self.ended.wait(BEAT):
                return

    def end(self) -> None:
        self.ended.set()
        self.thread.join(BROKEN)


class Others:
    """What the other ranks' pulses have done since this object was made."""

    def __init__(self, store: Store, rank: int, world: int) -> None:
        self.store, self.began = store, time.monotonic()
        self.last: dict[int, tuple[bytes, float]] = {r: (b"", self.began) for r in range(world) if r != rank}

    def look(self) -> None:
        """Read the counts. Raises RuntimeError where the store does not answer."""
        for other, (before, _) in self.last.items():
            key = f"beat/{other}"
            now = self.store.get(key) if self.store.check([key]) else b""
            if now != before:
                self.last[other] = now, time.monotonic()

    def silent(self, seconds: float) -> list[int]:
        """The ranks that have not counted for so long."""
        now = time.monotonic()
        return [other for other, (_, moment) in self.last.items() if now - moment >= seconds]

    def behind(self, calls: int) -> list[int]:
        """The ranks that have taken part in fewer exchanges than this one's number of `calls`."""
        return [other for other, (text, _) in self.last.items() if text and int(text.split()[1]) < calls]


def within(work: Callable[[], object], seconds: float = BROKEN) -> bool:
    """Do something that may hang for ever; whether it was done in that time, and without a RuntimeError."""
    done = []

    def run() -> None:
        with contextlib.suppress(RuntimeError):
            work()
            done.append(True)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(done)

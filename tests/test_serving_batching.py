"""Batches of many requests, and what may wait, against models of them. No test measures time."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnetkit.errors import UserError
from resnetkit.serving.batching import AIM, WAIT, Admission, Batcher, Job, Logits, Pixels, Waiting
from resnetkit.serving.limits import Budget, Limits, Refused, Shares, limits_of


def pictures(n: int, first: int = 0) -> Pixels:
    """Pictures of one pixel, that are their numbers."""
    return (np.arange(first, first + n) % 256).astype(np.uint8).reshape(n, 1, 1, 1)


def doubled(batch: Pixels) -> Logits:
    return 2 * batch.reshape(len(batch), 1).astype(np.float32)


class Held:
    """An engine that works when it is told to, and remembers its batches."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.begun, self.go = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, batch: Pixels) -> Logits:
        self.begun.release()
        assert self.go.acquire(timeout=10)
        self.sizes.append(len(batch))
        return doubled(batch)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 8))
def test_every_row_is_taken_once_and_in_order(sizes: list[int], largest: int) -> None:
    waiting, jobs = Waiting(largest), [Job(pictures(n), 0.0) for n in sizes]
    for job in jobs:
        waiting.add(job)
    taken, filled = [], []
    while batch := waiting.take():
        taken += [(job, row) for job, start, stop in batch for row in range(start, stop)]
        filled.append(sum(stop - start for _, start, stop in batch))
    assert taken == [(job, row) for job, n in zip(jobs, sizes, strict=True) for row in range(n)]
    assert filled[:-1] == [largest] * (len(filled) - 1)
    assert 0 < filled[-1] <= largest


def test_an_idle_engine_waits_shortly_and_a_full_batch_not_at_all() -> None:
    waiting = Waiting(4)
    assert waiting.seconds_left(5.0) is None
    waiting.add(Job(pictures(1), 5.0))
    assert waiting.seconds_left(5.0) == pytest.approx(WAIT)
    assert waiting.seconds_left(6.0) == 0
    waiting.add(Job(pictures(3), 5.0))
    assert waiting.seconds_left(5.0) == 0


def test_what_is_given_up_is_not_computed() -> None:
    waiting, given_up, wanted = Waiting(4), Job(pictures(3), 0.0), Job(pictures(2), 0.0)
    waiting.add(given_up)
    waiting.add(wanted)
    assert given_up.future.cancel()
    assert waiting.take() == [(wanted, 0, 2)]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=20), st.integers(1, 16))
def test_everybody_gets_the_answers_to_their_own_pictures(sizes: list[int], largest: int) -> None:
    seen: list[int] = []
    batcher = Batcher(doubled, largest, told=lambda n, _: seen.append(n))
    asked = [pictures(n, first=17 * number) for number, n in enumerate(sizes)]
    futures = [batcher.submit(each) for each in asked]
    batcher.close()
    for each, future in zip(asked, futures, strict=True):
        assert np.array_equal(future.result(0), doubled(each))
    assert sum(seen) == sum(sizes)
    assert max(seen) <= largest


def test_what_comes_while_the_engine_works_is_one_batch() -> None:
    engine = Held()
    batcher = Batcher(engine, 8)
    futures = [batcher.submit(pictures(1))]
    assert engine.begun.acquire(timeout=10)
    futures += [batcher.submit(pictures(1)) for _ in range(6)]
    engine.go.release(2)
    batcher.close()
    assert [future.result(0).shape for future in futures] == [(1, 1)] * 7
    assert engine.sizes == [1, 6]


def test_an_error_goes_to_who_asked_and_the_next_are_answered() -> None:
    def run(batch: Pixels) -> Logits:
        if batch[0, 0, 0, 0] == 13:
            raise MemoryError("no room")
        return doubled(batch)

    batcher = Batcher(run, 4)
    bad = batcher.submit(pictures(9, first=13))
    with pytest.raises(MemoryError, match="no room"):
        bad.result(10)
    assert batcher.submit(pictures(2)).result(10).tolist() == [[0], [2]]
    batcher.close()
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit(pictures(1))


def test_an_engine_that_answers_too_few_is_an_error() -> None:
    batcher = Batcher(lambda batch: doubled(batch)[1:], 4)
    with pytest.raises(ValueError, match="1 answers to 2 pictures"):
        batcher.submit(pictures(2)).result(10)
    batcher.close()


def test_closing_answers_what_waits() -> None:
    engine = Held()
    batcher = Batcher(engine, 1)
    futures = [batcher.submit(pictures(1)) for _ in range(3)]
    assert futures[2].cancel()
    batcher.close(wait=False)
    engine.go.release(3)
    batcher.thread.join(10)
    assert [future.result(0).tolist() for future in futures[:2]] == [[[0]], [[0]]]
    with pytest.raises(CancelledError):
        futures[2].result(0)


def test_as_many_are_admitted_as_are_answered_in_time() -> None:
    admission = Admission(latency=1.0, most=1000, batch=8, seconds=0.01)
    admitted = sum(admission.admit(1) is None for _ in range(500))
    assert admitted == pytest.approx(AIM / 0.01, abs=1)
    again = admission.admit(1)
    assert again is not None
    assert again > 0


@pytest.mark.parametrize("true", [0.002, 0.01, 0.05])
@pytest.mark.parametrize("guess", [0.0005, 0.2])
def test_a_wrong_guess_is_unlearnt(true: float, guess: float) -> None:
    """A server that takes `true` seconds a picture, kept as busy as admission lets it be."""
    admission, ahead = Admission(1.0, 10_000, 8, guess), list[int]()
    for _ in range(3000):
        while admission.admit(1) is None:
            ahead.append(admission.under_way)
        admission.done(1, ahead[0], ahead[0] * true + 0.004)
        del ahead[0]
    assert max(ahead) * true <= 1.0
    assert max(ahead) * true >= 0.5


def test_a_stop_is_not_remembered_for_ever() -> None:
    admission = Admission(latency=1.0, most=1000, batch=4, seconds=0.01)
    assert admission.admit(4) is None
    admission.done(4, 4, 1000.0)
    assert admission.seconds > 1  # a single picture would be late
    for _ in range(100):
        assert admission.admit(1) is None
        admission.done(1, 1, 0.01)
    assert admission.admit(1) is None
    assert admission.admit(1) is None


def test_the_queue_has_an_end_whatever_the_clock_says() -> None:
    admission = Admission(latency=100.0, most=10, batch=4, seconds=1e-9)
    assert [admission.admit(4) is None for _ in range(3)] == [True, True, False]
    admission.done(4, 4, None)
    assert admission.admit(4) is None
    assert Admission(100.0, 10, 4, 1e-9).admit(64) is None  # a request as large as is allowed has its turn


def test_limits_are_set_by_name() -> None:
    assert limits_of(["body=5", "latency=0.25", "drain=0"]) == Limits(body=5, latency=0.25, drain=0.0)
    for setting, sentence in {
        "bdy=5": "did you mean 'body'",
        "body": "no NAME=VALUE",
        "body=1.5": "must be a whole number above 0",
        "body=-1": "must be a whole number above 0",
        "latency=nan": "must be a number above 0",
    }.items():
        if setting == "body":
            sentence = "no such limit, or no NAME=VALUE"
        with pytest.raises(UserError, match=sentence):
            limits_of([setting])


def test_shares_and_budgets_are_given_back() -> None:
    shares, budget = Shares(2), Budget(10)
    assert [shares.take("a"), shares.take("a"), shares.take("a"), shares.take("b")] == [True, True, False, True]
    for who in "aab":
        shares.give_back(who)
    assert shares.taken == {}
    assert [budget.take(6), budget.take(6), budget.take(4)] == [True, False, True]
    budget.give_back(6)
    assert budget.take(6)


def test_refusals_say_when_to_come_back() -> None:
    assert Refused(503, "full", reason="queue", retry=0.2).headers == {"retry-after": "1"}
    assert Refused(401, "no", reason="token").headers == {"www-authenticate": "Bearer"}

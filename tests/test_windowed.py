"""The order for shards that lie far away: a permutation that has few of them open."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnetkit.data import loader
from resnetkit.data.loader import gathered, order, shown, windowed
from resnetkit.data.pictures import Arrays, Data, Indices, class_sorted

sizes = st.lists(st.integers(0, 9), max_size=30)


@given(st.integers(0, 2**63 - 1), st.integers(0, 1000), sizes, st.integers(1, 8))
def test_a_permutation_with_few_shards_open(seed: int, epoch: int, sizes: list[int], window: int) -> None:
    found = windowed(seed, epoch, sizes, window)
    assert sorted(found.tolist()) == list(range(sum(sizes)))
    shard = np.repeat(np.arange(len(sizes)), sizes)[found]
    first = {k: np.flatnonzero(shard == k)[0] for k in shard.tolist()}
    last = {k: np.flatnonzero(shard == k)[-1] for k in shard.tolist()}
    for at in range(len(shard)):
        assert sum(first[k] <= at <= last[k] for k in first) <= window
    assert found.tolist() == windowed(seed, epoch, sizes, window).tolist()


def test_seed_and_epoch_change_it_and_pictures_mix() -> None:
    sizes = [50] * 8
    one = windowed(0, 0, sizes, 4)
    assert one.tolist() != windowed(1, 0, sizes, 4).tolist()
    assert one.tolist() != windowed(0, 1, sizes, 4).tolist()
    assert len({k // 50 for k in one[:50].tolist()}) == 4


def test_only_shards_that_lie_far_away_are_read_together() -> None:
    def data(shards: list[int] | None) -> Data:
        pictures = Arrays(np.zeros((40, 1, 1, 3), np.uint8), (("x", 40),))
        starts = None if shards is None else np.array(shards)
        return Data("x", pictures, np.zeros(40, np.int64), ("a",), {"all": np.arange(40)}, shards=starts)

    some = np.array([0, 1, 2, 11, 12, 30, 31, 39])  # a split: a part of the pool
    assert shown(data(None), some, 3, 1).tolist() == some[order(3, 1, 8)].tolist()
    far = shown(data([0, 10, 20, 30]), some, 3, 1)
    assert far.tolist() == some[windowed(3, 1, [3, 2, 3], 16)].tolist()


@given(st.integers(0, 2**63 - 1), st.integers(1, 60), st.integers(1, 20))
def test_a_batch_is_what_it_was_in_the_pools_order(seed: int, n: int, batch: int) -> None:
    places = order(seed, 0, n)
    found = gathered(places, batch)
    for at in range(0, n - batch + 1, batch):
        assert found[at : at + batch].tolist() == sorted(places[at : at + batch].tolist())
    rest = n // batch * batch
    assert found[rest:].tolist() == places[rest:].tolist()


def test_machines_read_hardly_any_shard_that_others_read() -> None:
    """Four machines that take a quarter of each batch; 32 shards in windows of 16."""
    places = windowed(3, 0, [1000] * 32, 16)

    def read(places: Indices) -> int:
        return sum(len(np.unique(part // 1000)) for part in places.reshape(-1, 4, 64).transpose(1, 0, 2).reshape(4, -1))

    assert read(places) == 4 * 32
    assert read(gathered(places, 256)) < 2 * 32


def test_sorted_shards_are_noticed() -> None:
    dice = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 100)

    def data(labels: np.ndarray[Any, Any], shards: range | None) -> Data:
        pictures = Arrays(np.zeros((1000, 1, 1, 3), np.uint8), (("x", 1000),))
        starts = None if shards is None else np.array(shards)
        return Data("x", pictures, labels, tuple("abcdefghij"), {"all": np.arange(1000)}, shards=starts)

    every = np.arange(1000)
    for size in (4, 20, 100, 250):
        assert class_sorted(data(labels, range(0, 1000, size)), every)
        assert not class_sorted(data(dice.permutation(labels), range(0, 1000, size)), every)
    assert not class_sorted(data(labels, range(0, 1000, 1000)), every), "one shard has all"
    assert not class_sorted(data(labels, range(1000)), every), "of one picture each: any order"
    assert not class_sorted(data(labels, None), every)
    assert class_sorted(data(labels, range(0, 1000, 50)), every[::2])


def test_large_permutations_are_made_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """All permutations are as likely: of 4 numbers, each of the 24 about as often; those below the bound stay."""
    small = order(7, 2, 1000).tolist()
    monkeypatch.setattr(loader, "LARGE", 3)
    assert small != order(7, 2, 1000).tolist()
    assert sorted(order(7, 2, 1000).tolist()) == list(range(1000))
    assert order(7, 2, 1000).tolist() == order(7, 2, 1000).tolist()
    counts = Counter(tuple(order(seed, 0, 4).tolist()) for seed in range(6000))
    assert len(counts) == 24
    expected = 6000 / 24
    assert sum((n - expected) ** 2 / expected for n in counts.values()) < 52  # chi-square, 23 degrees: p = 0.0005

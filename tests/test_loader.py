"""Batches: order and random numbers as pure functions of seed, epoch and position, and threads that leave no trace."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from resnetkit.data.folder import load_folder
from resnetkit.data.loader import (
    DRAW,
    MIX,
    ORDER,
    Batch,
    Reader,
    draws,
    evaluation_batches,
    mixing,
    order,
    stream,
    training_batches,
)
from resnetkit.data.pictures import Arrays, Data
from resnetkit.data.transforms import DRAWS, Preprocess, augmented
from resnetkit.errors import UserError
from resnetkit.recipe import Augment

PREPROCESS = Preprocess(8, "shorter", 8, "bilinear", 3, "RGB", (0.5,) * 3, (0.25,) * 3, True)
NOTHING = Augment(crop="none", flip=False)
PADDED = Augment(crop="pad", pad=2, jitter=0.4, erase=0.5)
CROPPED = Augment(crop="resized", jitter=0.4, erase=0.5)
LARGEST_SEED = 2**63 - 1  # that a recipe may have

seeds = st.integers(0, LARGEST_SEED)
epochs = st.integers(0, 10_000)


def arrays(n: int, height: int = 9, width: int = 12) -> Data:
    """Pictures of noise in memory, in five classes."""
    pixels = np.random.default_rng(0).integers(0, 256, (n, height, width, 3), dtype=np.uint8)
    labels = np.random.default_rng(1).integers(0, 5, n)
    return Data("x:", Arrays(pixels, (("x", n),)), labels, tuple("abcde"), {"all": np.arange(n)})


def flat_pictures(n: int) -> Data:
    """Picture i is all of the grey level i, and its label is i modulo 5."""
    pixels = np.tile(np.arange(n, dtype=np.uint8)[:, None, None, None], (1, 8, 8, 3))
    return Data("x:", Arrays(pixels, (("x", n),)), np.arange(n) % 5, tuple("abcde"), {"all": np.arange(n)})


@pytest.fixture
def folder(tmp_path: Path) -> Data:
    """Twelve PNG files of two classes."""
    dice = np.random.default_rng(2)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(6):
            pixels = dice.integers(0, 256, (10, 9, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    return load_folder(tmp_path / "photos", "photos")


def reader(data: Data, *, threads: int = 2, keep: bool = False) -> Reader:
    return Reader(data, PREPROCESS, threads=threads, keep=keep)


def joined(batches: list[Batch]) -> tuple[NDArray[np.uint8], list[int], list[int]]:
    """Pictures, labels and indices of all batches one after the other."""
    pictures = np.concatenate([batch.pictures for batch in batches])
    labels = np.concatenate([batch.labels for batch in batches]).tolist()
    return pictures, labels, np.concatenate([batch.indices for batch in batches]).tolist()


def assert_same(left: list[Batch], right: list[Batch]) -> None:
    for a, b in zip(joined(left), joined(right), strict=True):
        np.testing.assert_array_equal(a, b)


def decoding_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("decode")]


# Order and random numbers


@given(seeds, epochs, st.integers(0, 300))
def test_an_order_shows_each_picture_once(seed: int, epoch: int, n: int) -> None:
    assert sorted(order(seed, epoch, n).tolist()) == list(range(n))


@given(st.lists(st.tuples(seeds, epochs), min_size=2, max_size=8, unique=True))
def test_each_seed_and_epoch_has_an_order_of_its_own(pairs: list[tuple[int, int]]) -> None:
    assert len({tuple(order(seed, epoch, 50).tolist()) for seed, epoch in pairs}) == len(pairs)


@pytest.mark.parametrize("apart", [2**62, 2**61, 2**32, 1])
def test_seeds_far_apart_are_different_seeds(apart: int) -> None:
    for epoch in (0, 1, 2):
        assert order(5, epoch, 50).tolist() != order(5 + apart, 0, 50).tolist()


def test_another_process_gives_the_same_numbers() -> None:
    code = (
        "import json; from resnetkit.data.loader import order, draws, mixing;"
        "print(json.dumps([order(7, 3, 40).tolist(), draws(7, 3, 11, 4).tolist(), mixing(7, 3, 5).random(4).tolist()]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = [order(7, 3, 40).tolist(), draws(7, 3, 11, 4).tolist(), mixing(7, 3, 5).random(4).tolist()]
    assert json.loads(done.stdout) == here


@given(seeds, epochs, st.integers(0, 200), st.integers(0, 60))
def test_draws_do_not_depend_on_how_the_range_is_cut(seed: int, epoch: int, start: int, count: int) -> None:
    whole = draws(seed, epoch, 0, start + count)
    assert whole.shape == (start + count, DRAWS)
    np.testing.assert_array_equal(draws(seed, epoch, start, count), whole[start:])


def test_draws_are_uniform_and_unrelated() -> None:
    stats = pytest.importorskip("scipy.stats", reason="comes with scikit-learn, the extra 'demo'")
    table = np.concatenate([draws(seed, epoch, 0, 2000) for seed in (0, 1) for epoch in (0, 1)])
    assert table.min() >= 0
    assert table.max() < 1
    assert len(np.unique(table)) == table.size
    assert stats.kstest(table.ravel(), "uniform").pvalue > 0.001
    for slot in range(DRAWS):
        assert stats.kstest(table[:, slot], "uniform").pvalue > 1e-5
    neighbours = np.corrcoef(table[:-1, 0], table[1:, 0])[0, 1]
    assert abs(neighbours) < 5 / np.sqrt(len(table))
    between = np.corrcoef(table.T)[~np.eye(DRAWS, dtype=bool)]
    assert np.abs(between).max() < 6 / np.sqrt(len(table))


@pytest.mark.parametrize("seed", [0, 1, 2**62, LARGEST_SEED])
def test_the_streams_never_meet(seed: int) -> None:
    found = [stream(kind, seed, epoch).random_raw(500) for kind in (ORDER, DRAW, MIX) for epoch in (0, 1)]
    assert len(np.unique(np.concatenate(found))) == 3000, "64 random bits repeat among 3,000 once in 4e12 times"


def test_mixing_differs_by_step_and_repeats() -> None:
    places = [(seed, epoch, step) for seed in (0, 1) for epoch in (0, 1) for step in (0, 1, 2)]
    found = {place: tuple(mixing(*place).random(5).tolist()) for place in places}
    assert len(set(found.values())) == len(places)
    assert found == {place: tuple(mixing(*place).random(5).tolist()) for place in reversed(places)}


# Training


@pytest.mark.parametrize("augment", [PADDED, CROPPED, NOTHING], ids=["pad", "resized", "none"])
def test_a_position_shows_what_its_seed_and_epoch_say(augment: Augment) -> None:
    data = arrays(100)
    chosen = np.arange(3, 83)
    (pictures, labels, indices) = joined(
        list(training_batches(reader(data), chosen, augment, seed=3, epoch=2, batch=40))
    )
    expected = chosen[order(3, 2, 80)]
    assert indices == expected.tolist()
    assert labels == data.labels[expected].tolist()
    table = draws(3, 2, 0, 80)
    for position, index in enumerate(indices):
        own = augmented(data.pictures.read(index), PREPROCESS, augment, table[position])  # type: ignore[arg-type]
        np.testing.assert_array_equal(pictures[position], own)


@pytest.mark.parametrize("augment", [PADDED, CROPPED], ids=["pad", "resized"])
@pytest.mark.parametrize(
    "change",
    [{"threads": 1}, {"threads": 4}, {"batch": 4}, {"batch": 8}, {"batch": 100}, {"keep": True}],
    ids=str,
)
def test_threads_batch_size_and_memory_change_nothing(change: dict[str, Any], augment: Augment) -> None:
    data = arrays(200)

    def made(*, batch: int = 40, **about: Any) -> list[Batch]:
        read = reader(data, **about)
        return [
            found
            for epoch in (0, 1, 2)  # pictures that are kept come from memory from the second on
            for found in training_batches(read, np.arange(200), augment, seed=1, epoch=epoch, batch=batch)
        ]

    assert_same(made(), made(**change))


@pytest.mark.parametrize("start", [1, 2, 4])
def test_starting_in_the_middle_gives_the_rest(start: int) -> None:
    data, chosen = arrays(90), np.arange(90)
    whole = list(training_batches(reader(data), chosen, PADDED, seed=0, epoch=5, batch=17))
    rest = list(training_batches(reader(data), chosen, PADDED, seed=0, epoch=5, batch=17, start=start))
    assert len(whole) == 5
    assert_same(whole[start:], rest)


def test_starting_at_the_end_gives_nothing() -> None:
    assert list(training_batches(reader(arrays(20)), np.arange(20), NOTHING, seed=0, epoch=0, batch=10, start=2)) == []


@given(st.integers(1, 60), st.integers(1, 70), epochs)
def test_batches_are_whole_and_no_picture_comes_twice(n: int, batch: int, epoch: int) -> None:
    data, chosen = flat_pictures(80), np.arange(10, 10 + n)
    batches = list(training_batches(reader(data), chosen, NOTHING, seed=0, epoch=epoch, batch=batch))
    assert [found.pictures.shape for found in batches] == [(batch, 8, 8, 3)] * (n // batch)
    seen = [index for found in batches for index in found.indices.tolist()]
    assert len(set(seen)) == len(seen)
    assert set(seen) <= set(chosen.tolist())
    for found in batches:
        assert found.pictures.dtype == np.uint8
        assert found.pictures[:, 0, 0, 0].tolist() == found.indices.tolist()
        assert found.labels.tolist() == [index % 5 for index in found.indices.tolist()]


def test_the_remainder_is_other_pictures_each_epoch() -> None:
    data = flat_pictures(20)
    left_out = {
        tuple(sorted(set(range(20)) - set(joined(list(batches))[2])))
        for epoch in range(6)
        for batches in [training_batches(reader(data), np.arange(20), NOTHING, seed=0, epoch=epoch, batch=8)]
    }
    assert len(left_out) > 1


def test_pictures_in_memory_are_not_read_again(folder: Data, tmp_path: Path) -> None:
    read = reader(folder, keep=True)
    first = list(training_batches(read, np.arange(12), NOTHING, seed=0, epoch=0, batch=12))
    for path in (tmp_path / "photos").rglob("*.png"):
        path.unlink()
    again = list(training_batches(read, np.arange(12), NOTHING, seed=0, epoch=0, batch=12))
    assert_same(first, again)


# Pictures that go bad after they were looked at


def damage(tmp_path: Path, name: str, how: str) -> None:
    path = tmp_path / "photos" / name
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    else:
        path.write_text("no picture")


@pytest.mark.parametrize(
    ("how", "reason"), [("missing", "No such file"), ("cut", ""), ("text", "")], ids=["missing", "cut", "text"]
)
def test_a_picture_that_went_bad_stops_the_training_and_is_named(
    how: str, reason: str, folder: Data, tmp_path: Path
) -> None:
    damage(tmp_path, "dog/3.png", how)
    with pytest.raises(UserError, match=rf"photos: 1 picture cannot be read: dog/3\.png \(.*{reason}"):
        list(training_batches(reader(folder), np.arange(12), PADDED, seed=0, epoch=0, batch=4))
    assert decoding_threads() == []


def test_all_bad_pictures_of_a_batch_are_named(folder: Data, tmp_path: Path) -> None:
    damage(tmp_path, "dog/3.png", "text")
    damage(tmp_path, "cat/0.png", "missing")
    with pytest.raises(UserError, match=r"2 pictures cannot be read: cat/0\.png .*; dog/3\.png "):
        list(training_batches(reader(folder), np.arange(12), PADDED, seed=0, epoch=0, batch=12))


def test_evaluation_leaves_bad_pictures_out_and_names_them(folder: Data, tmp_path: Path) -> None:
    turns = np.arange(12).reshape(2, 6).T.ravel()  # cat, dog, cat, dog
    before = joined(list(evaluation_batches(reader(folder), turns, batch=5)))
    for name, how in (("cat/2.png", "missing"), ("dog/0.png", "cut"), ("dog/5.png", "text")):
        damage(tmp_path, name, how)
    batches = list(evaluation_batches(reader(folder), turns, batch=5))
    assert [sorted(batch.bad) for batch in batches] == [[2, 6], [], [11]]
    assert all(reason for batch in batches for reason in batch.bad.values())
    pictures, labels, indices = joined(batches)
    assert indices == [0, 1, 7, 8, 3, 9, 4, 10, 5]
    assert labels == folder.labels[indices].tolist()
    np.testing.assert_array_equal(pictures, before[0][[index in indices for index in before[2]]])


def test_a_batch_of_bad_pictures_alone_is_empty(folder: Data, tmp_path: Path) -> None:
    for name in ("cat/0.png", "cat/1.png"):
        damage(tmp_path, name, "missing")
    first, *others = evaluation_batches(reader(folder), np.arange(6), batch=2)
    assert (len(first.pictures), len(first.labels), len(first.indices)) == (0, 0, 0)
    assert sorted(first.bad) == [0, 1]
    assert [batch.indices.tolist() for batch in others] == [[2, 3], [4, 5]]


# Evaluation


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize(("n", "batch"), [(0, 4), (1, 4), (4, 4), (75, 4), (75, 33), (75, 70), (75, 200)])
def test_evaluation_shows_every_picture_once_in_the_given_order(n: int, batch: int, threads: int) -> None:
    data = arrays(90)
    chosen = np.random.default_rng(3).permutation(90)[:n]
    batches = list(evaluation_batches(reader(data, threads=threads), chosen, batch=batch))
    assert [len(found.pictures) for found in batches] == [batch] * (n // batch) + [n % batch] * (n % batch > 0)
    assert all(found.bad == {} for found in batches)
    if n:
        pictures, labels, indices = joined(batches)
        assert indices == chosen.tolist()
        assert labels == data.labels[chosen].tolist()
        for picture, index in zip(pictures, indices, strict=True):
            np.testing.assert_array_equal(picture, PREPROCESS.fit(data.pictures.read(index)))  # type: ignore[arg-type]


# Threads


@pytest.mark.parametrize("kind", ["training", "evaluation"])
@pytest.mark.parametrize("taken", [1, 3])
def test_no_thread_is_left_when_the_caller_stops_early(kind: str, taken: int) -> None:
    data, chosen = arrays(200), np.arange(200)
    batches: Any = (
        training_batches(reader(data, threads=3), chosen, PADDED, seed=0, epoch=0, batch=40)
        if kind == "training"
        else evaluation_batches(reader(data, threads=3), chosen, batch=40)
    )
    for _ in range(taken):
        next(batches)
    assert decoding_threads(), "threads work ahead"
    batches.close()
    assert decoding_threads() == []

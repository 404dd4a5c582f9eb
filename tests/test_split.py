"""Keeping back pictures for validation: promises for any labels and duplicates, and a file that remembers."""

from __future__ import annotations

import csv
import hashlib
import os
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from resnetkit.data.pictures import Data, Files
from resnetkit.data.split import load_split, save_split, split_training
from resnetkit.errors import UserError

Digests = NDArray[np.uint8]


def digests_of(contents: list[int]) -> Digests:
    """A digest for each picture; equal numbers are equal pictures."""
    found = [np.frombuffer(hashlib.sha256(str(content).encode()).digest(), np.uint8) for content in contents]
    return np.array(found, np.uint8).reshape(-1, 32)


def pool(labels: list[int], names: list[str] | None = None, classes: int = 4, **splits: list[int]) -> Data:
    files = Files(Path("photos"), names or [f"{i:05}.jpg" for i in range(len(labels))])
    parts = {name: np.array(indices, np.int64) for name, indices in splits.items()}
    named = tuple(f"class {i}" for i in range(classes))
    return Data("photos", files, np.array(labels, np.int64), named, parts or {"all": np.arange(len(labels))})


@dataclass
class Case:
    """Pictures as (class, content), a share and a seed."""

    pictures: list[tuple[int, int]]
    share: float
    seed: int

    def split(self) -> tuple[Data, Data, Digests]:
        data, digests = pool([label for label, _ in self.pictures]), digests_of([c for _, c in self.pictures])
        return data, split_training(data, self.share, self.seed, digests), digests


cases = st.builds(
    Case,
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40)), min_size=1, max_size=60),
    st.floats(0.01, 0.99),
    st.integers(0, 2**31),
)


@given(cases)
def test_every_picture_is_on_one_side_and_identical_ones_on_the_same(case: Case) -> None:
    _, divided, _ = case.split()
    train, val = divided.splits["train"].tolist(), divided.splits["val"].tolist()
    assert sorted(train + val) == list(range(len(case.pictures)))
    assert train == sorted(train)
    assert val == sorted(val)
    contents = [content for _, content in case.pictures]
    assert not {contents[i] for i in train} & {contents[i] for i in val}


@given(cases)
def test_each_class_has_both_sides_where_its_pictures_allow(case: Case) -> None:
    _, divided, _ = case.split()
    labels_of: dict[int, set[int]] = defaultdict(set)
    for label, content in case.pictures:
        labels_of[content].add(label)
    for label in {label for label, _ in case.pictures}:
        contents = {content for own, content in case.pictures if own == label}
        pure = [content for content in contents if labels_of[content] == {label}]
        sides = [(divided.labels[divided.splits[split]] == label).any() for split in ("train", "val")]
        assert sides == [True, bool(pure) and len(contents) >= 2]


@given(st.lists(st.integers(0, 3), min_size=2, max_size=300), st.floats(0.01, 0.99), st.integers(0, 99))
def test_different_pictures_are_stratified_to_the_picture(labels: list[int], share: float, seed: int) -> None:
    data = split_training(pool(labels), share, seed, digests_of(list(range(len(labels)))))
    counts = np.bincount(data.labels[data.splits["val"]], minlength=4)
    for label, total in enumerate(np.bincount(labels, minlength=4).tolist()):
        assert counts[label] == (min(max(round(share * total), 1), total - 1) if total > 1 else 0)


@given(cases, st.randoms())
def test_neither_order_nor_names_matter(case: Case, random) -> None:  # type: ignore[no-untyped-def]
    def kept(found: Case) -> set[bytes]:
        _, divided, digests = found.split()
        return {digests[i].tobytes() for i in divided.splits["val"].tolist()}

    shuffled = replace(case, pictures=random.sample(case.pictures, len(case.pictures)))
    assert kept(case) == kept(shuffled)


def test_the_seed_decides() -> None:
    data, digests = pool([0, 1] * 50), digests_of(list(range(100)))
    first, again, other = (split_training(data, 0.2, seed, digests).splits["val"].tolist() for seed in (1, 1, 2))
    assert first == again
    assert first != other
    order = sorted(range(100), key=lambda i: hashlib.blake2b(digests[i].tobytes(), key=b"1").digest())
    assert first == sorted([i for i in order if i % 2 == 0][:10] + [i for i in order if i % 2 == 1][:10])


def test_one_picture_more_moves_few_others() -> None:
    digests = digests_of(list(range(200)))
    before = split_training(pool([0, 1] * 99), 0.2, 0, digests[:198]).splits["val"].tolist()
    after = split_training(pool([0, 1] * 100), 0.2, 0, digests).splits["val"].tolist()
    assert len(set(before) ^ set(after)) <= 4


def test_unread_pictures_are_not_taken_for_identical() -> None:
    data = split_training(pool([0, 0, 1, 1]), 0.5, 0, np.zeros((4, 32), np.uint8))
    assert {name: len(indices) for name, indices in data.splits.items()} == {"train": 2, "val": 2}


def test_what_is_divided_already() -> None:
    digests = digests_of(list(range(6)))
    labels = [0, 1] * 3
    whole = pool(labels, train=[0, 1, 2, 3], val=[4, 5])
    assert split_training(whole, 0.2, 0, digests) is whole
    with_test = split_training(pool(labels, train=[0, 1, 2, 3], test=[4, 5]), 0.2, 0, digests)
    assert {name: len(indices) for name, indices in with_test.splits.items()} == {"train": 2, "val": 2, "test": 2}
    assert with_test.splits["test"].tolist() == [4, 5]
    assert list(split_training(pool(labels), 0.0, 0, digests).splits) == ["train"]


def test_a_note_says_what_was_kept_back() -> None:
    data = split_training(pool([0, 0, 1, 1], classes=2), 0.2, 7, digests_of([0, 1, 2, 2]))
    assert data.notes == ("kept back 1 of 4 pictures for validation (seed 7), none of class 1",)


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_no_share(share: float) -> None:
    with pytest.raises(UserError, match="must be at least 0 and below 1"):
        split_training(pool([0, 1]), share, 0, digests_of([0, 1]))


file_names = st.binary(min_size=1, max_size=20).map(lambda name: os.fsdecode(name.replace(b"\0", b"0")))


@given(st.lists(file_names, min_size=4, max_size=8, unique=True))
def test_the_file_gives_the_same_split_back(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    folder = tmp_path_factory.mktemp("split")
    data = pool([i % 2 for i in range(len(names))], names)
    divided = split_training(data, 0.3, 0, digests_of(list(range(len(names)))))
    save_split(divided, folder / "split.csv")
    again = load_split(data, folder / "split.csv")
    assert {k: v.tolist() for k, v in again.splits.items()} == {k: v.tolist() for k, v in divided.splits.items()}
    assert [path.name for path in folder.iterdir()] == ["split.csv"]


def test_the_file_is_a_plain_table(tmp_path: Path) -> None:
    save_split(pool([0, 1], ["b.jpg", 'a "1", x.jpg'], train=[0], val=[1]), tmp_path / "split.csv")
    with (tmp_path / "split.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"path": 'a "1", x.jpg', "label": "class 1", "split": "val"},
            {"path": "b.jpg", "label": "class 0", "split": "train"},
        ]


def test_left_out_pictures_are_in_no_row(tmp_path: Path) -> None:
    data = pool([0, 0, 1, 1], train=[0, 3], val=[1])
    save_split(data, tmp_path / "split.csv")
    again = load_split(pool([0, 0, 1, 1], all=[0, 1, 3]), tmp_path / "split.csv")
    assert {k: v.tolist() for k, v in again.splits.items()} == {"train": [0, 3], "val": [1]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pool([0, 1, 0]), r"1 are new, such as 00002.jpg; put them back as they were, or begin a new run"),
        (pool([0]), "1 are gone, such as 00001.jpg"),
        (pool([0, 0]), "1 have another label, such as 00001.jpg"),
    ],
)
def test_other_pictures_are_noticed(tmp_path: Path, data: Data, message: str) -> None:
    save_split(pool([0, 1], train=[0], val=[1]), tmp_path / "split.csv")
    with pytest.raises(UserError, match=message):
        load_split(data, tmp_path / "split.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no split file"),
        ("path,label\n", "no split file"),
        ("path,label,split\na,b\n", "line 2: not path,label,split"),
        ("path,label,split\na,b,c\n", "line 2: not path,label,split"),
        ('path,label,split\n"a,b,train\n', "damaged split file"),
        (None, "cannot be read"),
    ],
)
def test_a_damaged_file(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "split.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        load_split(pool([0, 1]), tmp_path / "split.csv")


def test_no_place_for_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        save_split(pool([0, 1]), tmp_path / "gone" / "split.csv")

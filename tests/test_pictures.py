"""The pool of pictures: names, labels by name, and what is refused for training."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from resnetkit.data.pictures import Arrays, Data, Files, check_trainable, label_table, listing, name_bad
from resnetkit.errors import UserError


def data(labels: list[int], classes: tuple[str, ...], **splits: list[int]) -> Data:
    files = Files(Path("photos"), [f"{i}.jpg" for i in range(len(labels))])
    parts = {name: np.array(indices, dtype=np.int64) for name, indices in splits.items()}
    return Data("photos", files, np.array(labels, dtype=np.int64), classes, parts or {"all": np.arange(len(labels))})


def test_files_give_their_bytes_and_sizes(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9 'a\" \xf0\x9f\x90\x88.jpg")  # bytes that are not UTF-8, quotes, a cat
    (tmp_path / name).write_bytes(b"12345")
    files = Files(tmp_path, [name, str(tmp_path / name), "gone.jpg"])
    assert [files.read(0), files.read(1), files.size(0)] == [b"12345", b"12345", 5]
    with pytest.raises(FileNotFoundError):
        files.read(2)


def test_arrays_are_named_by_part_and_read_as_views() -> None:
    pixels = np.arange(5 * 12, dtype=np.uint8).reshape(5, 2, 2, 3)
    arrays = Arrays(pixels, (("x/train", 3), ("x/test", 2)))
    assert [arrays.name(i) for i in range(5)] == ["x/train/0", "x/train/1", "x/train/2", "x/test/0", "x/test/1"]
    assert np.shares_memory(arrays.read(3), pixels)
    assert arrays.read(3).tolist() == pixels[3].tolist()
    assert arrays.size(0) == 12
    with pytest.raises(IndexError):
        arrays.name(5)


def test_labels_follow_the_names_bytes_and_one_spelling() -> None:
    decomposed = unicodedata.normalize("NFD", "é")
    labels, classes = label_table(["é", "b", decomposed, "10", "2", os.fsdecode(b"\xff")])
    assert classes == ("10", "2", "b", "é", os.fsdecode(b"\xff"))
    assert labels.tolist() == [3, 2, 3, 0, 1, 4]
    assert labels.dtype == np.int64


def test_relabelling_goes_by_name_not_by_number() -> None:
    found = data([0, 1, 1], ("cat", "dog")).relabelled(("cow", "dog", "cat"))
    assert found.labels.tolist() == [2, 1, 1]
    assert found.classes == ("cow", "dog", "cat")


def test_relabelling_names_ten_unknown_classes_and_counts_the_rest() -> None:
    names = tuple(f"c{i:02}" for i in range(13))
    with pytest.raises(UserError, match=r"does not know 12 classes: c01, .*, c10 and 2 more; did you mean 'c00'"):
        data(list(range(13)), names).relabelled(("c00", "other"))


def test_select_names_the_splits_there_are() -> None:
    assert data([0, 1], ("a", "b"), train=[0], val=[1]).select("val").tolist() == [1]
    with pytest.raises(UserError, match="no split 'test'; it has train, val"):
        data([0, 1], ("a", "b"), train=[0], val=[1]).select("test")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (data([0, 0], ("a",)), r"one class only \(a\)"),
        (data([0, 0, 1], ("a", "b")), "1 class with one picture only: b;"),
        (data([0, 0, 1, 1], ("a", "b"), train=[0, 1], val=[2, 3]), "val has 1 class that train lacks: b;"),
        (data([0, 0, 1, 1], ("a", "b"), train=[0, 1], test=[2, 3]), "test has 1 class that train lacks: b;"),
        (data([0, 0, 1, 1], ("a", "b"), val=[0, 1, 2, 3]), "no pictures to train on; it has val"),
        (data([0, 0, 1], ("a", "b"), train=[0, 1]), "1 class with no picture that can be read: b;"),
        (data([], ()), "no pictures to train on"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused(given: Data, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_trainable(given)


def test_one_training_picture_is_enough_beside_one_for_validation() -> None:
    check_trainable(data([0, 0, 1, 1], ("a", "b"), train=[0, 2], val=[1, 3]))
    check_trainable(data([0, 0, 1, 1], ("a", "b")))


def test_used_leaves_out_what_is_in_no_split() -> None:
    assert data([0, 0, 1, 1], ("a", "b"), train=[3, 0], val=[1]).used().tolist() == [0, 1, 3]


def test_lists_are_cut_at_ten() -> None:
    assert listing([str(i) for i in range(10)]).endswith("8, 9")
    assert listing([str(i) for i in range(1234)]).endswith("8, 9 and 1,224 more")


def test_bad_pictures_are_named_with_reason_and_remedy() -> None:
    pool = data([0] * 12, ("a",))
    assert name_bad(pool, {3: "empty file"}) == (
        'photos: 1 picture cannot be read: 3.jpg (empty file); mend or remove it, or set data.bad = "skip"'
    )
    assert "; 9.jpg (x) and 2 more; mend or remove them" in name_bad(pool, dict.fromkeys(range(12), "x"))
